"""Scores held against what happens to the queries when examples are removed: one at a time, or in groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata

from .. import UsageError
from .correlation import Array, drawn, interval, pairs, scaled, scaled_ranks
from .evaluation import AnyScores, require_parts
from .sums import score_sums
from .tables import Table
from .truth import Output, Truth


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """Predicted and actual change of every query's loss when examples are removed, both times n: nats per unit weight.

    Intervals are 95% ones, the removed sets drawn again; NaN where no draw was asked for.
    """

    pearson: float
    """Correlation over all pairs of a removed set and a query."""
    pearson_interval: tuple[float, float]
    """Its ends."""
    spearman: float
    """Rank correlation over the same pairs."""
    spearman_interval: tuple[float, float]
    """Its ends, with ranks held."""
    slope: float
    """Of actual on predicted, through the origin: 1 where the size is right too, above 1 where too little is predicted."""
    slope_interval: tuple[float, float]
    """Its ends."""
    pearson_per_query: Float[Array, " m"]
    """Correlation over the removed sets; 0 where one of the two does not vary."""
    spearman_per_query: Float[Array, " m"]
    """Rank correlation over the removed sets."""
    repeat_correlation: float
    """Pearson correlation of the changes between two repeats: one training a set is not to be predicted better than the root of
    this. NaN with one repeat."""
    predicted: Float[Array, "k m"]
    """Summed scores of what was removed, or what was given instead."""
    actual: Float[Array, "k m"]
    """n times the rise of the loss (or fall of the margin), repeat by repeat against the whole train set."""
    size: Int[NDArray[np.int64], " k"]
    """Examples removed."""
    row: Int[NDArray[np.int64], " k"]
    """Where the part stands in the ground truth."""
    excluded: int
    """Parts left out because no training of theirs can be paired with one on the whole set."""

    def __str__(self) -> str:
        return f"Pearson {self.pearson:.4f}, Spearman {self.spearman:.4f}, slope {self.slope:.2f}, over {len(self.row)} removals"

    def table(self) -> Table:
        """One row a removed set.

        Returns:
            part (its row in the ground truth), removed (examples), predicted and actual (means over the queries), pearson,
            spearman and slope over the queries.
        """
        x, y = self.predicted, self.actual
        length = (x**2).sum(1)
        columns = {
            "part": self.row,
            "removed": self.size,
            "predicted": x.mean(1),
            "actual": y.mean(1),
            "pearson": (scaled(x.T) * scaled(y.T)).sum(0),
            "spearman": (scaled_ranks(x.T) * scaled_ranks(y.T)).sum(0),
            "slope": np.divide((x * y).sum(1), length, out=np.full(len(x), np.nan), where=length > 0),
        }
        return Table(columns, "Change of the queries' loss when examples are removed, times n (nats per unit weight)")


def loo(scores: AnyScores, truth: Truth, output: Output = "loss", resamples: int = 2000, seed: int = 0) -> Removal:
    """Scores against what leaving out one example at a time really does.

    Args:
        scores: Scores of the queries and train examples of the ground truth, found by their ids, or an array [m, n] in its
            order; positive: helpful.
        truth: The whole train set, and the same without one example each; other parts are not looked at.
        output: "loss", or "margin": its fall.
        resamples: Draws of the left-out examples for the intervals; 0: no interval.
        seed: Of the draws.

    Returns:
        How scores and n times the change agree.

    Raises:
        UsageError: No part lacks exactly one example.
    """
    single = (~truth.kept).sum(1) == 1
    if not single.any():
        raise UsageError(
            "No part of this ground truth lacks exactly one example; retrain with leave_out=EXAMPLES for leave-one-out."
        )
    some = truth.parts(single | truth.is_whole)
    found = subset_removal(removed_sums(scores, some), some, output, resamples, seed)
    return replace(found, row=np.flatnonzero(single | truth.is_whole)[found.row])


def removed_sums(scores: AnyScores, truth: Truth) -> Float[Array, "J m"]:
    """What scores expect of removing sets: their sum over the examples that each part lacks.

    Args:
        scores: As in `loo`.
        truth: The parts.

    Returns:
        One sum a part and query, nats per unit weight.
    """
    return score_sums(scores, truth, ~truth.kept)


def subset_removal(
    predicted: Float[Array, "J m"], truth: Truth, output: Output = "loss", resamples: int = 2000, seed: int = 0
) -> Removal:
    """Predicted changes against what removing sets of examples really does.

    Args:
        predicted: n times the rise of every query's loss that is expected of each part of the ground truth (`removed_sums`, or
            `group_values` with the interaction within a set).
        truth: The whole train set, and parts of it.
        output: "loss", or "margin": its fall.
        resamples: Draws of the sets for the intervals; 0: no interval.
        seed: Of the draws.

    Returns:
        How the two agree.
    """
    change = _changes(truth, output)
    good: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(change), axis=2)
    rows = np.flatnonzero(good.any(1) & ~truth.is_whole)
    excluded = int((~truth.is_whole).sum()) - len(rows)
    require_parts(len(rows), excluded, resamples)
    y = np.nanmean(np.where(good[:, :, None], change, np.nan)[rows], axis=1)
    x = np.asarray(predicted, dtype=np.float64)[rows]
    weights = np.concatenate([
        np.full((1, len(rows)), 1 / len(rows)),  # the sample itself, and then its draws
        drawn(np.random.default_rng(seed), len(rows), resamples),
    ])
    pearson, slope = _agreement(x, y, weights)
    spearman, _ = _agreement(_ranks(x), _ranks(y), weights)
    return Removal(
        pearson=float(pearson[0]),
        pearson_interval=interval(pearson[1:]),
        spearman=float(spearman[0]),
        spearman_interval=interval(spearman[1:]),
        slope=float(slope[0]),
        slope_interval=interval(slope[1:]),
        pearson_per_query=(scaled(x) * scaled(y)).sum(0),
        spearman_per_query=(scaled_ranks(x) * scaled_ranks(y)).sum(0),
        repeat_correlation=_between_repeats(truth, change[rows], good[rows]),
        predicted=x,
        actual=y,
        size=(~truth.kept[rows]).sum(1),
        row=rows,
        excluded=excluded,
    )


def _changes(truth: Truth, output: Output) -> Float[Array, "J r m"]:
    """N times the rise of each query's loss, or fall of its margin, against the whole train set with the same repeat."""
    whole = np.flatnonzero(truth.is_whole & ~truth.diverged.all(1))
    if not len(whole):
        raise UsageError(
            "This ground truth has no training on the whole train set to compare with; retrain on it too, a part that lacks "
            "nothing."
        )
    values = truth.values(output) if output == "margin" else -truth.values(output)
    change: Array = truth.kept.shape[1] * (values[whole[0]] - values)
    return change


def _agreement(
    x: Float[Array, "k m"], y: Float[Array, "k m"], weights: Float[Array, "B k"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Pearson correlation over all pairs, and slope of y on x through the origin, under every weighting of the rows."""
    slope = _ratio(weights @ (x * y).mean(1), weights @ (x**2).mean(1))
    u, v = x - x.mean(), y - y.mean()
    moments = np.stack([u, v, u**2, v**2, u * v]).mean(2)  # [5, k]
    mean_u, mean_v, square_u, square_v, product = (weights @ row for row in moments)
    spread = np.sqrt(np.clip((square_u - mean_u**2) * (square_v - mean_v**2), 0, None))
    return _ratio(product - mean_u * mean_v, spread), slope


def _ratio(a: Float[Array, " B"], b: Float[Array, " B"]) -> Float[Array, " B"]:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _ranks(values: Float[Array, "k m"]) -> Float[Array, "k m"]:
    """Among all entries."""
    ranks: Array = rankdata(values).reshape(values.shape)
    return ranks


def _between_repeats(truth: Truth, change: Float[Array, "k r m"], good: Bool[NDArray[np.bool_], "k r"]) -> float:
    """Pearson correlation of the changes, averaged over pairs of repeats."""
    if truth.exact:
        return 1.0
    found = []
    for a, b in pairs(change.shape[1]):
        both = good[:, a] & good[:, b]
        if both.sum() > 1:
            found.append(float((scaled(change[both, a].reshape(-1, 1)) * scaled(change[both, b].reshape(-1, 1))).sum()))
    return float(np.mean(found)) if found else float("nan")
