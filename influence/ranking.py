"""Neighbours by score, and how often their classes match: loops over blocks of rows, so that a matrix on disk is read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

ROWS = 1024


@runtime_checkable
class Matrix(Protocol):
    """Scores [m, n] that are read by rows: an array, or a dataset on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, n)."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows as an array."""


ScoreRows = Callable[[slice], NDArray[Any]]
"""rows -> scores [b, n]."""


def neighbours(scores: ScoreRows, m: int, n: int, k: int, *, on_itself: bool) -> NDArray[np.int64]:
    """Positions of the k train examples of highest score for every query.

    Args:
        scores: The score matrix, by rows.
        m: Number of queries.
        n: Number of train examples.
        k: How many neighbours; cut to what there is.
        on_itself: The queries are the train set: an example is not its own neighbour.

    Returns:
        Positions [m, k], best first; among equal scores the lower position comes first.
    """
    k = min(k, n - 1 if on_itself else n)
    out = np.empty((m, k), dtype=np.int64)
    for start in range(0, m, ROWS):
        rows = slice(start, min(start + ROWS, m))
        block = np.array(scores(rows))
        if on_itself:
            block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = -np.inf
        out[rows] = largest_columns(block, k)
    return out


def largest_columns(block: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the k largest entries of every row, in stable descending order."""
    if 4 * k >= block.shape[1]:
        return np.argsort(-block, axis=1, kind="stable")[:, :k]
    # a partition settles which entries are above the k-th largest; those equal to it enter by position
    kth = -np.partition(-block, k - 1, axis=1)[:, k - 1 : k]
    above = block > kth
    missing = k - above.sum(1, keepdims=True)
    ties = block == kth
    chosen = above | (ties & (ties.cumsum(1) <= missing))
    columns = np.nonzero(chosen)[1].reshape(len(block), k)
    order = np.argsort(-np.take_along_axis(block, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


def wilson(rate: NDArray[np.float64], m: int, z: float = 1.959963984540054) -> tuple[NDArray[Any], NDArray[Any]]:
    """Wilson's 95% interval of a share of m independent queries.

    Args:
        rate: Shares between 0 and 1. A mean of per-query shares has at most the variance of a mean of zeros and ones, so for
            it the interval is conservative.
        m: Number of queries.
        z: Normal quantile.

    Returns:
        Lower and upper bound, same shape as `rate`.
    """
    centre = (rate + z * z / (2 * m)) / (1 + z * z / m)
    half = z / (1 + z * z / m) * np.sqrt(rate * (1 - rate) / m + z * z / (4 * m * m))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
