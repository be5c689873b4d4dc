"""What a fine-tuning can be told; torch is not imported here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .attack_settings import PGDSettings
from .checks import number, positive_int, require

LWF_DISTANCES = ("mean_abs", "l2")
BN_STATISTICS = ("trained", "extractor", "all", "none")
COUNTINGS = ("residual", "cartl")
_ATTACK = ("norm", "eps", "steps", "step_size")


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

    images_seed: int | None = None
    """Decides the images in the place of seed, so that runs of several seeds have the same ones; not given: seed does."""

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

    fresh: bool = False
    """Begin the trained blocks with weights as they are born, not with those of the source, which is left in the frozen part."""

    adversarial: bool = False
    """Train on images moved by PGD through the whole network instead of on the images themselves."""

    norm: str = "l2"
    """Ball of that attack: l2 or linf."""

    eps: float = 1.0
    """Radius of that ball, in units of pixels that run from 0 to 1."""

    steps: int = 3
    """Steps of that attack."""

    step_size: float | None = None
    """Length of one of these steps; not given: 2.5 eps / steps."""

    shift: int = 0
    """Largest random shift of a training image in each direction, in pixels of the network's input, filled with zeros (a
    random crop of the padded image); 0: none."""

    flip: bool = False
    """Mirror a training image left to right half of the time."""

    rotate: float = 0.0
    """Largest random rotation of a training image to either side, in degrees, filled with zeros; 0: none."""

    counting: str = "residual"
    """What k counts: residual, the residual blocks; cartl, as CARTL does, the head as 1 and the batch-norm after the last block
    of a wide residual network as 2."""

    cache_mb: int = 1024
    """Most memory, in MiB, for the frozen part's activations; a larger set is recomputed batch by batch."""

    evaluate_every: int = 20
    """Epochs between two entries of the history, the first and last always among them; 0: only these."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.k != "all":
            require(isinstance(self.k, int), f"k is {self.k!r}", "give a whole number of at least 0, or all")
            positive_int("k", self.k, least=0)
        for name in ("seed", "cache_mb", "evaluate_every", "hidden"):
            positive_int(name, getattr(self, name), least=0)
        for name in ("n", "epochs", "hidden_width"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        if self.images_seed is not None:
            positive_int("images_seed", self.images_seed, least=0)
        positive_int("batch_size", self.batch_size)
        for name in ("momentum", "weight_decay", "lwf"):
            number(name, getattr(self, name))
        number("learning_rate", self.learning_rate, zero=False)
        if self.neft is not None:
            number("neft", self.neft, zero=False)
        self._check_head()
        self._check_recipe()
        self._check_images()

    def _check_head(self) -> None:
        for name in ("head_dropout", "head_first"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"{name} is {value!r}", "give a part from 0 to below 1")
        idle = [name for name in ("hidden_width", "head_batch_norm", "head_dropout") if getattr(self, name)]
        require(
            self.hidden > 0 or not idle,
            f"{', '.join(idle)} would act on hidden layers of the head, and hidden is 0",
            "give hidden as well, or leave the rest out",
        )

    def _check_recipe(self) -> None:
        known = (
            ("lwf_distance", LWF_DISTANCES),
            ("bn_statistics", (None, *BN_STATISTICS)),
            ("counting", COUNTINGS),
        )
        for name, words in known:
            value = getattr(self, name)
            choices = ", ".join(word for word in words if word)
            require(value in words, f"{name} is {value!r}", f"choose one of {choices}")
        require(
            not (self.fresh and self.lwf),
            f"lwf is {self.lwf} with fresh blocks, which know nothing to forget",
            "leave one of them out",
        )

    def _check_images(self) -> None:
        positive_int("shift", self.shift, least=0)
        number("rotate", self.rotate)
        require(self.rotate <= 180, f"rotate is {self.rotate!r}", "give degrees from 0 to 180")
        _ = self.attack  # its own checks
        plain = {field.name: field.default for field in fields(self)}
        idle = [name for name in _ATTACK if getattr(self, name) != plain[name]]
        require(
            self.adversarial or not idle,
            f"{', '.join(idle)} would act on the attack of the training, and there is none",
            "give adversarial as well, or leave the rest out",
        )
        require(
            not (self.lwf and (self.adversarial or self.augmented)),
            f"lwf is {self.lwf} with training images that are moved, and the source's features are those of the images as "
            "they are",
            "leave lwf out, or the attack and the augmentation",
        )

    def check_blocks(self) -> None:
        """Refuse a recipe that asks something of trained blocks where there are none; k may be set run by run until then."""
        require(
            self.k != 0 or self.counting == "residual", "k is 0, and CARTL counts the head as 1", "give k of at least 1"
        )
        least = f"give k of at least {1 if self.counting == 'residual' else 2}, or all"
        require(
            self.lwf == 0 or not self.head_alone,
            f"lwf is {self.lwf} with k = {self.k}, where the features stay those of the source and have nothing to forget",
            least,
        )
        require(
            not self.fresh or not self.head_alone,
            f"fresh is given with k = {self.k}, where the head alone is trained, which is always a fresh one",
            least,
        )

    @property
    def head_alone(self) -> bool:
        """Whether nothing but the head is trained."""
        return self.k == (0 if self.counting == "residual" else 1)

    @property
    def augmented(self) -> bool:
        """Whether training images are shifted, mirrored or rotated at random."""
        return bool(self.shift or self.flip or self.rotate)

    @property
    def attack(self) -> PGDSettings:
        """The attack of the training steps, where there is one."""
        return PGDSettings(norm=self.norm, eps=self.eps, steps=self.steps, step_size=self.step_size)

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
        if self.adversarial:  # an attack that is made is told in full
            plain |= dict.fromkeys(_ATTACK)
        return {name: v for name, v in values.items() if name not in _LATER or v != plain[name]}


_LATER = frozenset({
    "images_seed",
    *("hidden", "hidden_width", "head_batch_norm", "head_dropout", "head_first"),
    *("lwf", "lwf_distance", "neft", "bn_affine", "bn_statistics"),
    *("fresh", "adversarial", *_ATTACK, "shift", "flip", "rotate", "counting"),
})
