"""What the stages of this folder can be told, one frozen class a stage; torch is not imported here.

The line under each field is its help text on the command line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .. import UsageError

NORMS = ("l2", "linf")
KEEPS = ("last", "loss", "success")
LWF_DISTANCES = ("mean_abs", "l2")
BN_STATISTICS = ("trained", "extractor", "all", "none")


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

    restarts: int = 1
    """Ascents, each from a start of its own; without a random start the first of them begins at the image itself."""

    keep: str = "last"
    """Which points count: last, an ascent's last; loss, all, the highest loss; success, all, the first that fools."""

    stop_early: bool = False
    """Attack an image no further once a point that counts has fooled the network; what is fooled is the same."""

    def __post_init__(self) -> None:
        _require(self.norm in NORMS, f"norm is {self.norm!r}", f"choose one of {', '.join(NORMS)}")
        _require(self.keep in KEEPS, f"keep is {self.keep!r}", f"choose one of {', '.join(KEEPS)}")
        _number("eps", self.eps)
        _positive_int("steps", self.steps, least=0)
        _positive_int("restarts", self.restarts)
        if self.step_size is not None:
            _number("step_size", self.step_size, zero=False)

    @property
    def stride(self) -> float:
        """The length of one step that is really taken."""
        return self.step_size if self.step_size is not None else 2.5 * self.eps / max(self.steps, 1)

    @property
    def plain(self) -> bool:
        """One ascent whose last point is taken, whatever it does to the network."""
        return self.restarts == 1 and self.keep == "last"


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
        _require(good, f"input_shape is {self.input_shape}", "give channels, height and width, each at least 1")
        if self.beta is not None:
            _number("beta", self.beta, zero=False)

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
            _positive_int(name, getattr(self, name))
        for name in ("limit", "eval_images"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        for name in ("shift", "seed", "eval_steps", "fdm_k"):
            _positive_int(name, getattr(self, name), least=0)
        for name in ("momentum", "weight_decay", "fdm"):
            _number(name, getattr(self, name))
        _number("learning_rate", self.learning_rate, zero=False)
        _require(0 <= self.warm_up < 1, f"warm_up is {self.warm_up!r}", "give a part of the training from 0 to below 1")
        _require(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneSettings:
    """How a source network is moved to a target: which blocks, which images, which recipe."""

    k: int | Literal["all"] = 0
    """Residual blocks at the end of the network that are trained with the new head; 0: the head alone; all: every
    block and the stem."""

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

    hidden: int = 0
    """Hidden layers with rectifiers in the new head, before its last linear layer."""

    hidden_width: int | None = None
    """Units of each hidden layer; not given: as many as features enter the head."""

    head_batch_norm: bool = False
    """Batch-norm before the rectifier of each hidden layer of the head."""

    head_dropout: float = 0.0
    """Probability with which a hidden unit of the head is dropped in training."""

    head_first: float | None = None
    """Part of the steps, from the first on, in which the head alone is trained; not given: 0, and 0.5 with lwf."""

    lwf: float = 0.0
    """Learning without forgetting: weight of the distance between the penultimate features and those of the source,
    added to the loss; 0: none."""

    lwf_distance: str = "mean_abs"
    """That distance, averaged over the batch: mean_abs (mean absolute difference) or l2 (Euclidean length)."""

    neft: float | None = None
    """Train with every convolution and linear layer of the trained part divided by its spectral norm and multiplied by
    this; not given: with the weights as they are."""

    bn_affine: bool = True
    """Train the scales and shifts of the batch-norm layers in the trained blocks too."""

    bn_statistics: str | None = None
    """Batch-norm statistics that follow the target: trained (those of the trained blocks), extractor (those of the frozen
    part), all, or none, which keeps the source's; not given: trained, and none with lwf."""

    cache_mb: int = 1024
    """Most memory, in MiB, for the frozen part's activations; a larger set is recomputed batch by batch."""

    evaluate_every: int = 20
    """Epochs between two entries of the history, the first and last always among them; 0: only these."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.k != "all":
            _require(isinstance(self.k, int), f"k is {self.k!r}", "give a whole number of at least 0, or all")
            _positive_int("k", self.k, least=0)
        for name in ("seed", "cache_mb", "evaluate_every", "hidden"):
            _positive_int(name, getattr(self, name), least=0)
        for name in ("n", "epochs", "hidden_width"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        _positive_int("batch_size", self.batch_size)
        for name in ("momentum", "weight_decay", "lwf"):
            _number(name, getattr(self, name))
        _number("learning_rate", self.learning_rate, zero=False)
        if self.neft is not None:
            _number("neft", self.neft, zero=False)
        self._check_head()
        self._check_recipe()

    def _check_head(self) -> None:
        for name in ("head_dropout", "head_first"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 1, f"{name} is {value!r}", "give a part from 0 to below 1")
        idle = [name for name in ("hidden_width", "head_batch_norm", "head_dropout") if getattr(self, name)]
        _require(
            self.hidden > 0 or not idle,
            f"{', '.join(idle)} would act on hidden layers of the head, and hidden is 0",
            "give hidden as well, or leave the rest out",
        )

    def _check_recipe(self) -> None:
        known = (("lwf_distance", LWF_DISTANCES), ("bn_statistics", (None, *BN_STATISTICS)))
        for name, words in known:
            value = getattr(self, name)
            choices = ", ".join(word for word in words if word)
            _require(value in words, f"{name} is {value!r}", f"choose one of {choices}")
        _require(
            self.lwf == 0 or self.k != 0,
            f"lwf is {self.lwf} with k = 0, where the features stay those of the source and have nothing to forget",
            "give k of at least 1, or all",
        )

    @property
    def warm_up(self) -> float:
        """The part of the steps in which the head alone is trained: the one given, otherwise that of the recipe."""
        if self.head_first is not None:
            return self.head_first
        return 0.5 if self.lwf else 0.0

    @property
    def statistics(self) -> str:
        """Which batch-norm statistics follow the target: those given, otherwise those of the recipe."""
        if self.bn_statistics is not None:
            return self.bn_statistics
        return "none" if self.lwf else "trained"

    def epochs_for(self, n: int) -> int:
        """The number of epochs for n images: the one given, otherwise the paper's."""
        if self.epochs is not None:
            return self.epochs
        return 100 if n <= 1600 else 150

    def recipe(self) -> dict[str, Any]:
        """All of them by name; what came with later recipes and is not used is left out, as in runs made before."""
        values = asdict(self) | {"head_first": self.warm_up, "bn_statistics": self.statistics}
        plain = {field.name: field.default for field in fields(self)} | {"head_first": 0.0, "bn_statistics": "trained"}
        if not self.lwf:
            plain["lwf_distance"] = self.lwf_distance
        return {name: v for name, v in values.items() if name not in _LATER or v != plain[name]}


_LATER = frozenset({
    *("hidden", "hidden_width", "head_batch_norm", "head_dropout", "head_first"),
    *("lwf", "lwf_distance", "neft", "bn_affine", "bn_statistics"),
})
