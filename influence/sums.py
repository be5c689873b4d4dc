"""Sums of scores over parts of a train set, as a ground truth names them: matched by id, read by rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray

from .. import UsageError
from .errors import ShapeError
from .ranking import ROWS, Matrix
from .scores import Scores
from .truth import Truth


def score_sums(
    scores: Scores | Matrix | ArrayLike, truth: Truth, chosen: Bool[NDArray[np.bool_], "J n"]
) -> Float[NDArray[np.float64], "J m"]:
    """Summed scores of sets of train examples, for every query of a ground truth.

    Args:
        scores: Of these queries and examples and perhaps of more, which are then found by their ids; an array [m, n] has
            the queries and examples of the ground truth, in its order.
        truth: Whose queries and examples are meant.
        chosen: The sets.

    Returns:
        One sum a set and query.

    Raises:
        UsageError: Some scores are not finite.
    """
    matrix, rows, columns = _aligned(scores, truth)
    weights = chosen.astype(np.float64)
    out = np.empty((len(chosen), len(rows)))
    for start in range(0, matrix.shape[0], ROWS):
        at = np.flatnonzero((rows >= start) & (rows < start + ROWS))
        if not len(at):
            continue
        block = np.asarray(matrix[start : start + ROWS], dtype=np.float64)[rows[at] - start]
        out[:, at] = weights @ (block if columns is None else block[:, columns]).T
    if not np.isfinite(out).all():
        raise UsageError("Some of these scores are NaN or infinite; they cannot be held against a ground truth.")
    return out


def _aligned(
    scores: Scores | Matrix | ArrayLike, truth: Truth
) -> tuple[Matrix, Int[NDArray[np.int64], " m"], Int[NDArray[np.int64], " n"] | None]:
    """A matrix with the positions in it of the ground truth's queries and train examples; None: all, in this order."""
    m, n = len(truth.query_index), len(truth.train_index)
    if isinstance(scores, Scores):
        rows = positions(scores.queries.index, truth.query_index, "queries")
        columns = positions(scores.train.index, truth.train_index, "train examples")
        same = len(columns) == len(scores.train) and bool((columns == np.arange(n)).all())
        return scores.matrix, rows, None if same else columns
    matrix: Any = scores if isinstance(scores, Matrix) else np.asarray(scores)
    if tuple(matrix.shape) != (m, n):
        raise ShapeError(
            f"The scores are {list(matrix.shape)}; the ground truth has {m} queries and {n} train examples, so [{m}, {n}] "
            "fits it."
        )
    return matrix, np.arange(m), None


def positions(there: NDArray[np.int64], wanted: NDArray[np.int64], what: str) -> Int[NDArray[np.int64], " k"]:
    """Where the ids of a ground truth stand.

    Args:
        there: Ids of the examples of one side.
        wanted: Ids of the ground truth.
        what: What they are, for the message.

    Returns:
        One position an id that is wanted.

    Raises:
        UsageError: Some are not there.
    """
    at = {int(index): position for position, index in enumerate(there)}
    missing = [int(index) for index in wanted if int(index) not in at]
    if missing:
        raise UsageError(
            f"The scores lack {len(missing)} of the {len(wanted)} {what} of the ground truth, id {missing[0]} for one; score "
            "the examples that it was made with."
        )
    return np.array([at[int(index)] for index in wanted], dtype=np.int64)
