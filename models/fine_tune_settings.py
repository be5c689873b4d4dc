"""What a fine-tuning can be told; torch is not imported here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .checks import number, positive_int, require

LWF_DISTANCES = ("mean_abs", "l2")
BN_STATISTICS = ("trained", "extractor", "all", "none")


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
            require(isinstance(self.k, int), f"k is {self.k!r}", "give a whole number of at least 0, or all")
            positive_int("k", self.k, least=0)
        for name in ("seed", "cache_mb", "evaluate_every", "hidden"):
            positive_int(name, getattr(self, name), least=0)
        for name in ("n", "epochs", "hidden_width"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        positive_int("batch_size", self.batch_size)
        for name in ("momentum", "weight_decay", "lwf"):
            number(name, getattr(self, name))
        number("learning_rate", self.learning_rate, zero=False)
        if self.neft is not None:
            number("neft", self.neft, zero=False)
        self._check_head()
        self._check_recipe()

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
        known = (("lwf_distance", LWF_DISTANCES), ("bn_statistics", (None, *BN_STATISTICS)))
        for name, words in known:
            value = getattr(self, name)
            choices = ", ".join(word for word in words if word)
            require(value in words, f"{name} is {value!r}", f"choose one of {choices}")
        require(
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
