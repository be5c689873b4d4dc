"""What an attack, and the accuracy under it, can be told; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .checks import number, positive_int, require

NORMS = ("l2", "linf")
KEEPS = ("last", "loss", "success")

EVALUATION_IMAGES = 1000
"""Images that an attack is evaluated on when nothing else is asked; the count stands beside every rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PGDSettings:
    """Projected gradient ascent of the loss inside a ball around each image; pixels stay in [0, 1]."""

    norm: str = "l2"
    """Ball the perturbation stays in: l2 or linf."""

    eps: float = 1.0
    """Radius of the ball, in units of pixels that run from 0 to 1."""

    steps: int = 20
    """Gradient steps; 0 leaves the random start as it is."""

    step_size: float | None = None
    """Length of one step; not given: 2.5 eps / steps."""

    random_start: bool = True
    """Start from a point drawn uniformly from the ball; otherwise from the image itself."""

    restarts: int = 1
    """Ascents, each from a start of its own; without a random start the first of them begins at the image itself."""

    keep: str = "last"
    """Which points count: last, an ascent's last; loss, all, the highest loss; success, all, the first that fools."""

    stop_early: bool = False
    """Attack an image no further once a point that counts has fooled the network; what is fooled is the same."""

    def __post_init__(self) -> None:
        require(self.norm in NORMS, f"norm is {self.norm!r}", f"choose one of {', '.join(NORMS)}")
        require(self.keep in KEEPS, f"keep is {self.keep!r}", f"choose one of {', '.join(KEEPS)}")
        number("eps", self.eps)
        positive_int("steps", self.steps, least=0)
        positive_int("restarts", self.restarts)
        if self.step_size is not None:
            number("step_size", self.step_size, zero=False)

    @property
    def stride(self) -> float:
        """The length of one step that is really taken."""
        return self.step_size if self.step_size is not None else 2.5 * self.eps / max(self.steps, 1)

    @property
    def plain(self) -> bool:
        """One ascent whose last point is taken, whatever it does to the network."""
        return self.restarts == 1 and self.keep == "last"

    @property
    def label(self) -> str:
        """The attack in a few words, as in L2 1, PGD-20."""
        more = f", {self.restarts} restarts" if self.restarts > 1 else ""
        kept = {"last": "", "loss": ", highest loss kept", "success": ", first success kept"}[self.keep]
        return f"{self.norm.capitalize()} {self.eps:g}, PGD-{self.steps}{more}{kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessSettings(PGDSettings):
    """The attack that a network's accuracy is measured under, and the images it is measured on."""

    images: int | None = EVALUATION_IMAGES
    """Test images to attack, the first so many, or of a set sorted by class so many spread over it; 1000 takes all of a smaller
    set; none: all of them."""

    attack_seed: int = 0
    """Decides the random starts."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        PGDSettings.__post_init__(self)
        if self.images is not None:
            positive_int("images", self.images)
        positive_int("attack_seed", self.attack_seed, least=0)

    @property
    def attack(self) -> PGDSettings:
        """The attack alone."""
        return PGDSettings(**{field.name: getattr(self, field.name) for field in fields(PGDSettings)})
