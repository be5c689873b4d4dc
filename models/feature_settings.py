"""What the looks at a network's penultimate layer can be told; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import number, positive_int, require


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeSettings:
    """How units of the penultimate layer are maximised by ascent on the input."""

    units: tuple[int, ...] = ()
    """Units of the penultimate layer, counted from 0; not given: those of each network that are most active on average over the
    images."""

    most_active: int = 3
    """How many of the most active units are taken, where none are named."""

    rows: tuple[int, ...] = ()
    """Rows of the test set to begin with; not given: the first image of each of the first classes."""

    starts: int = 2
    """How many test images to begin with, where no rows are named; 0: none."""

    noise: int = 1
    """How many images of noise, uniform in each pixel, to begin with besides."""

    steps: int = 200
    """Steps of ascent; of the images passed, the one with the highest activation is kept."""

    step_size: float = 0.25
    """Euclidean length of a step along the gradient, in units of pixels that run from 0 to 1."""

    radius: float | None = None
    """Largest Euclidean distance from the start; not given: only the range of pixels ends the way."""

    images: int | None = 1000
    """Test images that the average activity is taken over, the first so many; none: all of them."""

    seed: int = 0
    """Decides the noise."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name in ("units", "rows"):
            for value in getattr(self, name):
                positive_int(name, value, least=0)
        for name in ("starts", "noise", "steps", "seed"):
            positive_int(name, getattr(self, name), least=0)
        positive_int("most_active", self.most_active)
        if self.images is not None:
            positive_int("images", self.images)
        number("step_size", self.step_size, zero=False)
        if self.radius is not None:
            number("radius", self.radius, zero=False)
        require(
            bool(self.rows) or self.starts + self.noise > 0,
            "starts and noise are both 0, and no rows are named",
            "give something to begin with",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureShiftSettings:
    """How far a random change of an image moves the penultimate features."""

    shift: int = 2
    """Largest random shift of an image in each direction, in pixels, filled with zeros; 0: none."""

    flip: bool = False
    """Mirror an image left to right half of the time."""

    rotate: float = 0.0
    """Largest random rotation to either side, in degrees; 0: none."""

    distance: str = "l2"
    """The distance that is drawn: l2 (Euclidean length) or mean_abs (mean absolute difference); the table has both."""

    images: int | None = 1000
    """Test images, the first so many; none: all of them."""

    bins: int = 40
    """Bins of the histogram, from 0 to the largest distance of all."""

    seed: int = 0
    """Decides the changes; they are the same for every network with one input size."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name in ("shift", "seed"):
            positive_int(name, getattr(self, name), least=0)
        positive_int("bins", self.bins)
        if self.images is not None:
            positive_int("images", self.images)
        number("rotate", self.rotate)
        choices = ("l2", "mean_abs")
        require(self.distance in choices, f"distance is {self.distance!r}", f"choose one of {', '.join(choices)}")
        require(
            bool(self.shift or self.flip or self.rotate),
            "shift, flip and rotate are all off, so that nothing would change",
            "give at least one of them",
        )

    @property
    def change(self) -> str:
        """The change in words."""
        words = [f"shift by up to {self.shift} pixel{'s' if self.shift > 1 else ''}"] * bool(self.shift)
        words += ["mirror"] * self.flip + [f"rotation by up to {self.rotate:g} degrees"] * bool(self.rotate)
        return ", ".join(words)
