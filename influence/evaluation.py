"""Scores held against what retraining found: the linear datamodeling score, and the search for wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from .. import UsageError
from .correlation import LEVELS, Array, interval, pairs, resampled_means, scaled_ranks
from .errors import ShapeError
from .ranking import Matrix
from .scores import Scores
from .sums import score_sums
from .truth import Output, Truth

LEAST = 10  # parts below which there is no interval
INSPECTED = 0.1  # share of the train set that is looked through for wrong labels
AnyScores = Scores | Matrix | ArrayLike


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lds:
    """Linear datamodeling score: do sums of scores order the parts of a train set as retraining on them does?"""

    mean: float
    """Spearman correlation over the parts, averaged over the queries."""
    low: float
    """Lower end of its 95% interval, parts and queries drawn again; NaN where no draw was asked for."""
    high: float
    """Upper end."""
    per_query: Float[Array, " m"]
    """The correlation of each query."""
    ceiling: float
    """What the expected outcome itself would reach against these few trainings a part: with one a part it is not known (NaN)."""
    repeat_correlation: float
    """Spearman correlation over the parts between two trainings of the same part, averaged over the queries."""
    parts: int
    """Parts that were correlated over."""
    excluded: int
    """Parts left out because every training diverged."""
    diverged: int
    """Trainings left out for that."""
    constant: int
    """Queries that count as 0 because their prediction or their outcome is the same for every part."""

    def __str__(self) -> str:
        return f"LDS {_between(self.mean, self.low, self.high)}, ceiling {self.ceiling:.3f}, over {self.parts} parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class LdsDifference:
    """By how much the linear datamodeling score of one method lies above another's, on the same draws."""

    mean: float
    """First minus second."""
    low: float
    """Lower end of its 95% interval."""
    high: float
    """Upper end."""
    parts: int
    """Parts that were correlated over."""

    def __str__(self) -> str:
        return f"LDS difference {_between(self.mean, self.low, self.high)}, over {self.parts} parts"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mislabel:
    """How well self-influence finds wrong labels."""

    auc: float
    """Chance that a wrong label has more self-influence than a right one."""
    low: float
    """Lower end of its 95% interval (DeLong)."""
    high: float
    """Upper end."""
    found_at_10: float
    """Share of the wrong labels among the tenth of the examples that has most self-influence."""
    flipped: int
    """Wrong labels."""
    examples: int
    """Examples in all."""

    def __str__(self) -> str:
        return f"AUC {_between(self.auc, self.low, self.high)}, {self.found_at_10:.1%} found in the first tenth"


def lds(scores: AnyScores, truth: Truth, output: Output = "loss", resamples: int = 2000, seed: int = 0) -> Lds:
    """Linear datamodeling score of some scores.

    Args:
        scores: Scores of the queries and train examples of the ground truth, found by their ids, or an array [m, n] in its
            order; positive: helpful.
        truth: Parts of the train set, and what retraining on them gave; parts that lack nothing are left out.
        output: "loss": minus the loss of each query is what the sums predict; "margin": its margin.
        resamples: Draws of parts and queries for the interval, with ranks held; 0: no interval.
        seed: Of the draws.

    Returns:
        The mean over queries of the Spearman correlation between summed scores of the kept examples and the outcome.
    """
    return lds_of_sums(score_sums(scores, truth, truth.kept), truth, output, resamples, seed)


def lds_of_sums(
    predicted: Float[Array, "J m"], truth: Truth, output: Output = "loss", resamples: int = 2000, seed: int = 0
) -> Lds:
    """The same for predictions that are there already.

    Args:
        predicted: What is expected of each query after each part; more: lower loss.
        truth: Parts of the train set, and what retraining on them gave.
        output: As in `lds`.
        resamples: As in `lds`.
        seed: Of the draws.

    Returns:
        The score.
    """
    used = usable(truth, resamples)
    target = scaled_ranks(outcome(truth, output)[used])
    ranks = scaled_ranks(predicted[used])
    per_query = (ranks * target).sum(0)
    low, high = interval(resampled_means([ranks], target, resamples, seed)[0])
    between, ceiling = _ceiling(truth.parts(used), output)
    return Lds(
        mean=float(per_query.mean()),
        low=low,
        high=high,
        per_query=per_query,
        ceiling=ceiling,
        repeat_correlation=between,
        parts=int(used.sum()),
        excluded=int((~truth.is_whole & ~used).sum()),
        diverged=int(truth.diverged[~truth.is_whole].sum()),
        constant=int(((ranks == 0).all(0) | (target == 0).all(0)).sum()),
    )


def lds_difference(
    first: AnyScores, second: AnyScores, truth: Truth, output: Output = "loss", resamples: int = 2000, seed: int = 0
) -> LdsDifference:
    """By how much one method's linear datamodeling score lies above another's.

    Args:
        first: Scores of one.
        second: Scores of the other.
        truth: As in `lds`.
        output: As in `lds`.
        resamples: Draws of parts and queries, the same for both.
        seed: Of the draws.

    Returns:
        First minus second, with its paired interval.
    """
    sums = [score_sums(scores, truth, truth.kept) for scores in (first, second)]
    return difference_of_sums(sums[0], sums[1], truth, output, resamples, seed)


def difference_of_sums(
    first: Float[Array, "J m"],
    second: Float[Array, "J m"],
    truth: Truth,
    output: Output = "loss",
    resamples: int = 2000,
    seed: int = 0,
) -> LdsDifference:
    """The same for predictions that are there already.

    Args:
        first: Predictions of one method, as in `lds_of_sums`.
        second: Predictions of the other.
        truth: As in `lds`.
        output: As in `lds`.
        resamples: Draws of parts and queries, the same for both.
        seed: Of the draws.

    Returns:
        First minus second, with its paired interval.
    """
    used = usable(truth, resamples)
    target = scaled_ranks(outcome(truth, output)[used])
    ranks = [scaled_ranks(predicted[used]) for predicted in (first, second)]
    draws = resampled_means(ranks, target, resamples, seed)
    low, high = interval(draws[0] - draws[1])
    mean = float(((ranks[0] - ranks[1]) * target).sum(0).mean())
    return LdsDifference(mean=mean, low=low, high=high, parts=int(used.sum()))


def mislabel(self_influence: ArrayLike, flipped: ArrayLike) -> Mislabel:
    """How well self-influence finds wrong labels: they should have the most of it.

    Args:
        self_influence: Of every train example, `scores.self_influence()`.
        flipped: Which labels are wrong.

    Returns:
        Area under the ROC curve with DeLong's interval (cut to 0 and 1), and the share found in the first tenth, ties in
        random order.

    Raises:
        ShapeError: The two differ in length.
        UsageError: No label is wrong, or all are, or a value is not finite.
    """
    values, wrong = np.asarray(self_influence, dtype=np.float64), np.asarray(flipped, dtype=bool)
    if values.ndim != 1 or values.shape != wrong.shape:
        raise ShapeError(
            f"Self-influence is {list(values.shape)} and the marks of flipped labels are {list(wrong.shape)}; one of each an "
            "example is wanted."
        )
    if not 0 < wrong.sum() < len(wrong):
        raise UsageError(f"{wrong.sum()} of {len(wrong)} labels are flipped; some must be and some not.")
    if not np.isfinite(values).all():
        raise UsageError("Some self-influences are NaN or infinite; they cannot be ordered.")
    auc = float(roc_auc_score(wrong, values))
    half = float(ndtri(LEVELS[1])) * _delong(values, wrong)
    count = max(1, round(INSPECTED * len(values)))
    bound = np.partition(values, -count)[-count]
    above, ties = values > bound, values == bound
    found = wrong[above].sum() + wrong[ties].mean() * (count - above.sum())
    return Mislabel(
        auc=auc,
        low=max(0.0, auc - half),
        high=min(1.0, auc + half),
        found_at_10=float(found / wrong.sum()),
        flipped=int(wrong.sum()),
        examples=len(wrong),
    )


def outcome(truth: Truth, output: Output) -> Float[Array, "J m"]:
    """What sums of scores predict: minus the loss, or the margin, averaged over the trainings of a part.

    Args:
        truth: The ground truth.
        output: "loss" or "margin".

    Returns:
        More is better; NaN where every training diverged.
    """
    mean = truth.mean(output)
    return -mean if output == "loss" else mean


def usable(truth: Truth, resamples: int) -> Bool[NDArray[np.bool_], " J"]:
    """The parts that can be correlated over: some examples are lacking, and a training came to something.

    Args:
        truth: The ground truth.
        resamples: Draws for an interval; 0: none is wanted.

    Returns:
        One truth value a part.
    """
    lost = truth.diverged.all(1)
    used: NDArray[np.bool_] = ~truth.is_whole & ~lost
    require_parts(int(used.sum()), int((~truth.is_whole & lost).sum()), resamples)
    return used


def require_parts(count: int, lost: int, resamples: int) -> None:
    """Refuse to correlate over too few parts.

    Args:
        count: Those there are.
        lost: Those whose every training diverged.
        resamples: Draws for an interval; 0: none is wanted.

    Raises:
        UsageError: They are too few, or the number of draws is negative.
    """
    if resamples < 0:
        raise UsageError(f"resamples must be at least 0, got {resamples}.")
    least = LEAST if resamples else 2
    if count >= least:
        return
    diverged = f" (every training of {lost} more diverged)" if lost else ""
    mend = (
        "Retrain on more, or pass resamples=0 for the value without an interval." if resamples else "Retrain on more."
    )
    raise UsageError(
        f"The ground truth has {count} parts to correlate over{diverged}, and {'an interval' if resamples else 'it'} takes "
        f"{least} at least. {mend}"
    )


def _ceiling(truth: Truth, output: Output) -> tuple[float, float]:
    """Mean Spearman correlation between trainings of the same parts; and what their mean allows, by Spearman and Brown."""
    if truth.exact:
        return 1.0, 1.0
    values, good = truth.values(output), ~truth.diverged
    repeats = truth.seed.shape[1]
    found = []
    for a, b in pairs(repeats):
        both = good[:, a] & good[:, b]
        if both.sum() > 1:
            found.append(float((scaled_ranks(values[both, a]) * scaled_ranks(values[both, b])).sum(0).mean()))
    if not found:
        return float("nan"), float("nan")
    between = max(-1.0, min(1.0, float(np.mean(found))))
    reliability = repeats * between / (1 + (repeats - 1) * between) if between > 0 else 0.0
    return between, reliability**0.5


def _delong(values: Float[Array, " n"], wrong: Bool[NDArray[np.bool_], " n"]) -> float:
    """Standard error of the area under a ROC curve (DeLong, DeLong and Clarke-Pearson 1988, in the ranks of Sun and Xu 2014)."""
    many, few = int((~wrong).sum()), int(wrong.sum())
    ranks = rankdata(values)
    above = (ranks[wrong] - rankdata(values[wrong])) / many  # share of right labels below each wrong one
    below = 1 - (ranks[~wrong] - rankdata(values[~wrong])) / few
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else 0.0 for part in (above, below))
    return float(variance**0.5)


def _between(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
