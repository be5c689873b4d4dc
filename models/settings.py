"""What the stages of this folder can be told, one frozen class a stage; torch is not imported here.

The line under each field is its help text on the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import UsageError

NORMS = ("l2", "linf")


def _require(good: bool, found: str, wanted: str) -> None:
    if not good:
        raise UsageError(f"{found}; {wanted}.")


def _positive_int(name: str, value: int, least: int = 1) -> None:
    _require(
        isinstance(value, int) and value >= least, f"{name} is {value!r}", f"give a whole number of at least {least}"
    )


def _number(name: str, value: float, *, zero: bool = True) -> None:
    good = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
    _require(good, f"{name} is {value!r}", f"give a finite number {'>= 0' if zero else '> 0'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Which images a network is trained on and asked about."""

    data: str = "digits"
    """digits, fashion-mnist, mnist, kmnist, svhn, cifar10, cifar100, or the path of an image folder or .npz file."""

    root: str | None = None
    """Folder that holds the files of a named data set; fashion-mnist looks in Debian's folder when it is not given."""

    download: bool = False
    """Fetch a named data set into the root folder when it is not there; nothing is fetched otherwise."""

    def __post_init__(self) -> None:
        _require(bool(self.data), "data is empty", "name a data set or give a path")


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

    def __post_init__(self) -> None:
        _require(self.norm in NORMS, f"norm is {self.norm!r}", f"choose one of {', '.join(NORMS)}")
        _number("eps", self.eps)
        _positive_int("steps", self.steps, least=0)
        if self.step_size is not None:
            _number("step_size", self.step_size, zero=False)

    @property
    def stride(self) -> float:
        """The length of one step that is really taken."""
        return self.step_size if self.step_size is not None else 2.5 * self.eps / max(self.steps, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """How a source network is made from scratch, naturally or against PGD."""

    architecture: str = "small_resnet"
    """Network of the zoo: small_resnet, resnet18, resnet50, wide_resnet50_2, mobilenet_v2."""

    data: str = "fashion-mnist"
    """Data set to train on, as in the data settings."""

    root: str | None = None
    """Folder that holds the files of a named data set."""

    download: bool = False
    """Fetch a named data set into the root folder when it is not there."""

    limit: int | None = None
    """Train on the first this many images only; not given: on all of them."""

    adversarial: bool = False
    """Train on images moved by PGD instead of on the images themselves."""

    norm: str = "l2"
    """Ball of the attack, in training and in the evaluation: l2 or linf."""

    eps: float = 1.0
    """Radius of that ball, in units of pixels that run from 0 to 1."""

    steps: int = 3
    """Steps of the attack in training."""

    step_size: float | None = None
    """Length of one step in training; not given: 2.5 eps / steps."""

    epochs: int = 20
    """Passes over the training images."""

    batch_size: int = 128
    """Images in one step of stochastic gradient descent."""

    learning_rate: float = 0.1
    """Highest learning rate; it rises linearly for the warm-up and then falls to zero as a half cosine."""

    warm_up: float = 0.1
    """Part of the training, 0 to below 1, over which the learning rate rises."""

    momentum: float = 0.9
    """Momentum of stochastic gradient descent."""

    weight_decay: float = 5e-4
    """L2 coefficient added to every gradient, coupled as in torch's SGD."""

    shift: int = 2
    """Largest random shift of a training image in each direction, in pixels, filled with zeros; 0: none."""

    flip: bool = False
    """Mirror a training image left to right half of the time."""

    seed: int = 0
    """Decides the initial weights, the batch order, the shifts and the random starts."""

    eval_steps: int = 20
    """Steps of the attack that measures robust accuracy."""

    eval_images: int | None = 2000
    """Test images that robust accuracy is measured on, the first so many; none: all of them."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _positive_int(name, getattr(self, name))
        for name in ("limit", "eval_images"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        for name in ("shift", "seed", "eval_steps"):
            _positive_int(name, getattr(self, name), least=0)
        for name in ("momentum", "weight_decay"):
            _number(name, getattr(self, name))
        _number("learning_rate", self.learning_rate, zero=False)
        _require(0 <= self.warm_up < 1, f"warm_up is {self.warm_up!r}", "give a part of the training from 0 to below 1")
        _ = self.attack  # its own checks

    @property
    def attack(self) -> PGDSettings:
        """The attack of the training steps."""
        return PGDSettings(norm=self.norm, eps=self.eps, steps=self.steps, step_size=self.step_size)

    @property
    def evaluation_attack(self) -> PGDSettings:
        """The attack that robust accuracy is measured with."""
        return PGDSettings(norm=self.norm, eps=self.eps, steps=self.eval_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneSettings:
    """How a source network is moved to a target: which blocks, which images, which recipe."""

    k: int = 0
    """Residual blocks at the end of the network that are trained with the new head; 0: the head alone."""

    n: int | None = 400
    """Training images, drawn without replacement with every class among them; none: all there are."""

    seed: int = 20_000_000
    """Decides the images, the new head, the batch order and dropout; the paper's seeds are 20000000 + 100000 i."""

    epochs: int | None = None
    """Passes over the images; not given: 100 up to 1,600 images and 150 above."""

    batch_size: int = 128
    """Images in one step of stochastic gradient descent."""

    learning_rate: float = 0.1
    """First learning rate; it is divided by 10 after a third and after two thirds of the epochs."""

    momentum: float = 0.9
    """Momentum of stochastic gradient descent."""

    weight_decay: float = 5e-4
    """L2 coefficient added to every gradient of the trained part, coupled as in torch's SGD."""

    cache_mb: int = 1024
    """Most memory, in MiB, for the frozen part's activations; a larger set is recomputed batch by batch."""

    evaluate_every: int = 20
    """Epochs between two entries of the history, the first and last always among them; 0: only these."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name in ("k", "seed", "cache_mb", "evaluate_every"):
            _positive_int(name, getattr(self, name), least=0)
        for name in ("n", "epochs"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        _positive_int("batch_size", self.batch_size)
        for name in ("momentum", "weight_decay"):
            _number(name, getattr(self, name))
        _number("learning_rate", self.learning_rate, zero=False)

    def epochs_for(self, n: int) -> int:
        """The number of epochs for n images: the one given, otherwise the paper's."""
        if self.epochs is not None:
            return self.epochs
        return 100 if n <= 1600 else 150
