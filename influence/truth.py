"""Ground truth: what became of every query when the network was trained again on part of the train set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from .. import UsageError
from .errors import ShapeError

Output = Literal["loss", "margin"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """J parts of a train set of n examples, each of them trained on r times, and m queries measured after every training.

    Weights kept or renormalised is the training's own affair: a fit on a part minimises the mean loss over that part.
    """

    kept: Bool[NDArray[np.bool_], "J n"]
    """Examples that each training had."""
    seed: Int[NDArray[np.int64], "J r"]
    """Of each training."""
    loss: Float[NDArray[np.float64], "J r m"]
    """Loss of every query at its true label after each training, nats; NaN where a training diverged."""
    margin: Float[NDArray[np.float64], "J r m"]
    """Logit of the true label minus the log-sum-exp of the others; NaN where a training diverged."""
    train_index: Int[NDArray[np.int64], " n"]
    """Ids of the train examples."""
    query_index: Int[NDArray[np.int64], " m"]
    """Ids of the queries."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: what was trained, how the parts were drawn; plain JSON values."""

    def __post_init__(self) -> None:
        J, n = self.kept.shape
        r, m = self.seed.shape[1], len(self.query_index)
        wanted = {"seed": (J, r), "loss": (J, r, m), "margin": (J, r, m), "train_index": (n,)}
        for name, shape in wanted.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ShapeError(f"{name} of a ground truth is {list(found)}; {list(shape)} fits its other parts.")

    @property
    def diverged(self) -> Bool[NDArray[np.bool_], "J r"]:
        """Trainings that came to nothing: excluded from every mean, and counted."""
        return np.asarray(~np.isfinite(self.loss).all(axis=2))

    @property
    def exact(self) -> bool:
        """Whether every training reached the optimum of a convex problem, so that another seed would change nothing."""
        trainer = self.meta.get("trainer")
        return bool(self.meta.get("exact") or (isinstance(trainer, Mapping) and trainer.get("exact")))

    @property
    def is_whole(self) -> Bool[NDArray[np.bool_], " J"]:
        """Parts that lack nothing: what the others are compared with."""
        return np.asarray(self.kept.all(axis=1))

    def mean(self, output: Output = "loss") -> Float[NDArray[np.float64], "J m"]:
        """Every query after each part, averaged over the trainings that did not diverge.

        Args:
            output: "loss" or "margin".

        Returns:
            Means [J, m]; NaN for a part whose every training diverged.
        """
        values = self.values(output)
        good = ~self.diverged
        total = np.where(good[:, :, None], values, 0.0).sum(1)
        count = good.sum(1)[:, None]
        mean: NDArray[np.float64] = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        return mean

    def values(self, output: Output) -> Float[NDArray[np.float64], "J r m"]:
        """Every measurement.

        Args:
            output: "loss" or "margin".

        Returns:
            [J, r, m].

        Raises:
            UsageError: It is another word.
        """
        if output not in ("loss", "margin"):
            raise UsageError(f"output must be 'loss' or 'margin', got {output!r}.")
        return self.loss if output == "loss" else self.margin

    def parts(self, rows: NDArray[Any] | Sequence[int]) -> Truth:
        """Some of the parts.

        Args:
            rows: Which ones: positions, or one truth value each.

        Returns:
            A ground truth of these alone.
        """
        rows = np.asarray(rows)
        return replace(self, kept=self.kept[rows], seed=self.seed[rows], loss=self.loss[rows], margin=self.margin[rows])


def random_parts(
    labels: Int[NDArray[np.int64], " n"], count: int, alpha: float, seed: int = 0
) -> Bool[NDArray[np.bool_], "J n"]:
    """Parts of a train set drawn without replacement; part j depends on the seed and on j alone.

    Args:
        labels: Of the train examples.
        count: How many parts.
        alpha: Share of the examples in each, rounded to a whole number of them.
        seed: Of the draws.

    Returns:
        Which examples each part has.

    Raises:
        UsageError: alpha is not between 0 and 1, there is no part, or one of them lacks a class.
    """
    n = len(labels)
    size = round(alpha * n) if 0 < alpha < 1 else 0
    if not 0 < size < n:
        raise UsageError(
            f"alpha is {alpha} of {n} examples; give a share above 0 and below 1 that leaves some of them."
        )
    if count < 1:
        raise UsageError(f"{count} subsets are asked for; give at least 1.")
    kept = np.zeros((count, n), dtype=np.bool_)
    for j in range(count):
        kept[j, np.random.default_rng([seed, j]).permutation(n)[:size]] = True
    require_classes(kept, labels)
    return kept


def without_each(n: int, examples: Sequence[int] | NDArray[Any]) -> Bool[NDArray[np.bool_], "J n"]:
    """The whole train set, and then the same without each of some examples.

    Args:
        n: Train examples.
        examples: Positions of those that are left out, one at a time.

    Returns:
        Which examples each part has; the first row has all.

    Raises:
        UsageError: A position is out of range or named twice.
    """
    left_out = np.asarray(examples, dtype=np.int64)
    if len(left_out) and not (left_out.min() >= 0 and left_out.max() < n):
        raise UsageError(f"Examples to leave out must lie between 0 and {n - 1}, got {left_out.tolist()}.")
    if len(np.unique(left_out)) < len(left_out):
        raise UsageError("An example to leave out is named twice; name each once.")
    kept = np.ones((len(left_out) + 1, n), dtype=np.bool_)
    kept[np.arange(1, len(kept)), left_out] = False
    return kept


def require_classes(kept: Bool[NDArray[np.bool_], "J n"], labels: Int[NDArray[np.int64], " n"]) -> None:
    """Refuse parts of a train set that have no example of a class: nothing could be learnt of it.

    Args:
        kept: Which examples each part has.
        labels: Of the train examples.

    Raises:
        UsageError: A part lacks a class that the train set has.
    """
    for c in np.unique(labels):
        missing = np.flatnonzero(~kept[:, labels == c].any(1))
        if len(missing):
            raise UsageError(
                f"Subset {missing[0]} of {len(kept)} has no example of class {c}, and {len(missing)} lack it in all; keep a "
                "larger share of the examples, or take more of them."
            )
