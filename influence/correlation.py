"""Correlations over many columns at once, and how far they move when rows and columns are drawn again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

LEVELS = (0.025, 0.975)  # of a 95% interval
DRAWS = 250  # resamples at once
NOTHING = 1e-14  # what varies by less than this share of itself does so by rounding alone


def scaled(values: Float[Array, "J m"]) -> Float[Array, "J m"]:
    """Every column centred and of unit length, so that a correlation is a plain product.

    Args:
        values: Any numbers.

    Returns:
        The same in units of their own; a constant column is all zero and correlates with nothing.
    """
    out = values - values.mean(0)
    length = np.sqrt((out**2).sum(0))
    varies = length > NOTHING * np.abs(values).max(0, initial=0.0)
    done: Array = np.divide(out, length, out=np.zeros_like(out), where=varies)
    return done


def scaled_ranks(values: Float[Array, "J m"]) -> Float[Array, "J m"]:
    """Average ranks of every column, centred and of unit length: products of them are Spearman correlations.

    Args:
        values: Any numbers.

    Returns:
        Ranks; a constant column is all zero.
    """
    ranks: Array = rankdata(values, axis=0)
    return scaled(ranks)


def weighted_correlations(
    x: Float[Array, "J m"], y: Float[Array, "J m"], weights: Float[Array, "B J"]
) -> Float[Array, "B m"]:
    """Pearson correlation of every column under every weighting of its rows: five matrix products.

    Args:
        x: Centred, of unit length.
        y: Likewise.
        weights: Each row sums to one.

    Returns:
        Correlations; 0 where one of the two does not vary.
    """
    mean_x, mean_y = weights @ x, weights @ y
    variance_x = weights @ x**2 - mean_x**2
    variance_y = weights @ y**2 - mean_y**2
    covariance = weights @ (x * y) - mean_x * mean_y
    least = NOTHING / len(x)
    good = (variance_x > least) & (variance_y > least)
    scale = np.sqrt(np.where(good, variance_x * variance_y, 1.0))
    return np.where(good, covariance / scale, 0.0)


def resampled_means(
    predicted: Sequence[Float[Array, "J m"]], target: Float[Array, "J m"], resamples: int, seed: int
) -> Float[Array, "k B"]:
    """The mean correlation of some predictions with one target, over rows and columns that are drawn again and again.

    Ranks are those of the whole sample; all predictions see the same draws, so that their differences are paired.

    Args:
        predicted: Scaled ranks of each.
        target: Scaled ranks.
        resamples: How many draws.
        seed: Of the draws.

    Returns:
        One mean a prediction and draw.
    """
    J, m = target.shape
    generator = np.random.default_rng(seed)
    out = np.empty((len(predicted), resamples))
    for start in range(0, resamples, DRAWS):
        count = min(DRAWS, resamples - start)
        rows = drawn(generator, J, count)
        columns = drawn(generator, m, count)
        for k, x in enumerate(predicted):
            out[k, start : start + count] = (weighted_correlations(x, target, rows) * columns).sum(1)
    return out


def drawn(generator: np.random.Generator, count: int, resamples: int) -> Float[Array, "B count"]:
    """Weights of draws with replacement, as many as there are.

    Args:
        generator: Where chance comes from.
        count: How many things there are.
        resamples: How many draws.

    Returns:
        Non-negative weights; each row sums to one.
    """
    weights: Array = generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    return weights


def interval(values: Float[Array, " B"]) -> tuple[float, float]:
    """Percentile interval.

    Args:
        values: What the draws gave; none at all: there is no interval.

    Returns:
        Its two ends, 95% between them.
    """
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, LEVELS)
    return float(low), float(high)


def pairs(count: int) -> Iterator[tuple[int, int]]:
    """Every two of some things.

    Args:
        count: How many.

    Yields:
        Positions, the lower one first.
    """
    for a in range(count):
        for b in range(a + 1, count):
            yield a, b
