"""What the stages of this folder can be told, one frozen class a stage; torch is not imported here.

The line under each field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .attack_settings import PGDSettings, RobustnessSettings
from .checks import number, positive_int, require
from .fine_tune_settings import FineTuneSettings
from .recipe_label import recipe_label

__all__ = [
    "ConvertSettings",
    "DataSettings",
    "FineTuneSettings",
    "PGDSettings",
    "PretrainSettings",
    "RobustnessSettings",
    "recipe_label",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Which images a network is trained on and asked about."""

    data: str = "digits"
    """digits, fashion-mnist, mnist, kmnist, svhn, cifar10, cifar100, or the path of an image folder or .npz file."""

    root: str | None = None
    """Folder that holds the files of a named data set; fashion-mnist looks in Debian's folder when it is not given."""

    download: bool = False
    """Fetch a named data set into the root folder when it is not there; nothing is fetched otherwise."""

    resolution: int | None = None
    """Pixels a side that the images, train and test, are reduced to and then enlarged again to what the network takes; smaller
    images stay as they are. Not given: no image is reduced."""

    def __post_init__(self) -> None:
        require(bool(self.data), "data is empty", "name a data set or give a path")
        if self.resolution is not None:
            positive_int("resolution", self.resolution)

    def record(self) -> dict[str, Any]:
        """All of them by name, as plain JSON values; a resolution not asked for is left out, as in runs made before."""
        return {name: value for name, value in asdict(self).items() if name != "resolution" or value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """What a weight file of another project does not say about itself."""

    architecture: str | None = None
    """Network of the zoo, when it cannot be told from the weights."""

    input_shape: tuple[int, ...] = ()
    """Channels, height and width of the images; not given: what the architecture usually takes."""

    mean: tuple[float, ...] = ()
    """Mean of the normaliser, one number a channel, when the file has none."""

    std: tuple[float, ...] = ()
    """Standard deviation of the normaliser, one number a channel, when the file has none."""

    beta: float | None = None
    """Factor that spectrally normalised weights (CARTL's NEFT) were scaled by."""

    def __post_init__(self) -> None:
        good = not self.input_shape or (len(self.input_shape) == 3 and min(self.input_shape) >= 1)
        require(good, f"input_shape is {self.input_shape}", "give channels, height and width, each at least 1")
        if self.beta is not None:
            number("beta", self.beta, zero=False)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """The shape of the images, where it is given."""
        return (self.input_shape[0], self.input_shape[1], self.input_shape[2]) if self.input_shape else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """How a source network is made from scratch, naturally or against PGD."""

    architecture: str = "small_resnet"
    """Network of the zoo, such as small_resnet, wrn_16_1, wrn_28_4, cifar_resnet18, resnet50; a wrong name lists them all."""

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

    fdm: float = 0.0
    """Feature distance minimisation: weight of the distance by which the attack moves the features of a batch, a sum over
    its images, over the root of the number of features; 0: none."""

    fdm_k: int = 1
    """Where these features are taken: at the input of the last so many residual blocks, those to be fine-tuned later."""

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

    eval_images: int | None = 1000
    """Test images that robust accuracy is measured on, the first so many; none: all of them."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            positive_int(name, getattr(self, name))
        for name in ("limit", "eval_images"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        for name in ("shift", "seed", "eval_steps", "fdm_k"):
            positive_int(name, getattr(self, name), least=0)
        for name in ("momentum", "weight_decay", "fdm"):
            number(name, getattr(self, name))
        number("learning_rate", self.learning_rate, zero=False)
        require(0 <= self.warm_up < 1, f"warm_up is {self.warm_up!r}", "give a part of the training from 0 to below 1")
        require(
            self.adversarial or not self.fdm,
            f"fdm is {self.fdm} in a natural training, which has no attack to hold the features against",
            "train adversarially, or leave fdm out",
        )
        _ = self.attack  # its own checks

    @property
    def attack(self) -> PGDSettings:
        """The attack of the training steps."""
        return PGDSettings(norm=self.norm, eps=self.eps, steps=self.steps, step_size=self.step_size)

    @property
    def evaluation_attack(self) -> PGDSettings:
        """The attack that robust accuracy is measured with."""
        return PGDSettings(norm=self.norm, eps=self.eps, steps=self.eval_steps)
