"""Scores averaged over several trainings of one network: what one training owes to its seed averages out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from .examples import Examples
from .ranking import ROWS, Matrix
from .scores import Scores

SAME = ("unit", "query_label")
"""What has to be said of all alike."""
UNIT_ROWS = "none (each query's scores over their root mean square)"


@dataclass(frozen=True, slots=True, eq=False)
class MeanMatrix:
    """The mean of several matrices [m, n], computed in float64 as its rows are read."""

    matrices: Sequence[Matrix]
    unit_rows: bool = False
    """Divide every row of each by its root mean square first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, n)."""
        return tuple(self.matrices[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the most exact of the matrices."""
        return np.result_type(*(np.asarray(one[0:1]).dtype for one in self.matrices))

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        total = np.zeros(np.asarray(self.matrices[0][rows]).shape)
        for one in self.matrices:
            part = np.asarray(one[rows], dtype=np.float64)
            total += part / _sizes(part) if self.unit_rows else part
        return (total / len(self.matrices)).astype(self.dtype)


def _sizes(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square of every row, infinite in place of zero."""
    found = np.sqrt(np.square(rows).mean(1, keepdims=True))
    return np.where(found > 0, found, np.inf)


def average(scores: Sequence[Scores], *, unit_rows: bool = False) -> Scores:
    """The mean of the scores of several models, or of several methods, for the same queries and train examples.

    Args:
        scores: Of each, in one unit; their ids must be the same in the same order.
        unit_rows: Divide the scores of every query by their root mean square first, so that models in which its loss is large
            do not outvote the others; rankings keep their meaning, and a score has no unit any more.

    Returns:
        Mean scores, in memory. Losses and residuals of the examples are means too, and predictions those of the mean
        probability; `meta["runs"]` says what each was made by.

    Raises:
        UsageError: There are fewer than two, or they are not of the same examples, label and unit.
    """
    mean = average_as_read(scores, unit_rows=unit_rows)
    if mean.on_train is not None:
        mean.on_train.matrix = _in_memory(mean.on_train.matrix)
    mean.matrix = _in_memory(mean.matrix)
    return mean


def average_as_read(scores: Sequence[Scores], *, unit_rows: bool = False) -> Scores:
    """The same as `average`, each row computed when it is read: matrices on disk stay there.

    Args:
        scores: Of each.
        unit_rows: As for `average`.

    Returns:
        Mean scores that end with those they are the mean of.

    Raises:
        UsageError: As for `average`.
    """
    every = list(scores)
    if len(every) < 2:
        raise UsageError(f"An average is taken over several scores, and {len(every)} are given; give at least two.")
    for number, one in enumerate(every[1:], 2):
        _check_same(every[0], one, number)
    trained = [one.on_train for one in every if one.on_train is not None]
    return Scores(
        MeanMatrix([one.matrix for one in every], unit_rows),
        _mean_examples([one.queries for one in every]),
        _mean_examples([one.train for one in every]),
        meta=_meta(every, unit_rows=unit_rows),
        on_train=average_as_read(trained, unit_rows=unit_rows) if len(trained) == len(every) else None,
        on_itself=every[0].on_itself,
    )


def _in_memory(matrix: Matrix) -> NDArray[Any]:
    m, n = matrix.shape
    held = np.empty((m, n), dtype=np.asarray(matrix[0:1]).dtype)
    for start in range(0, m, ROWS):
        rows = slice(start, min(start + ROWS, m))
        held[rows] = matrix[rows]
    return held


def _check_same(first: Scores, other: Scores, number: int) -> None:
    for side in ("queries", "train"):
        one, two = getattr(first, side), getattr(other, side)
        if not (np.array_equal(one.index, two.index) and np.array_equal(one.label, two.label)):
            raise UsageError(
                f"Scores 1 and {number} are not of the same {side}: ids or labels differ; average scores of the same examples "
                "in the same order."
            )
    for name in SAME:
        if first.meta.get(name) != other.meta.get(name):
            raise UsageError(
                f"Scores 1 and {number} differ in {name}: {first.meta.get(name)} and {other.meta.get(name)}; average what is "
                "alike."
            )
    if not np.array_equal(first.target(), other.target()):
        raise UsageError(
            f"The models of scores 1 and {number} predict different classes, and each query's loss is taken at the predicted "
            "one; average scores at the true label."
        )


def _mean_examples(every: Sequence[Examples]) -> Examples:
    """Features of different networks have nothing in common, and are left out."""
    first = every[0]
    residuals = [one.residual for one in every if one.residual is not None]
    residual, prediction = None, first.prediction
    if len(residuals) == len(every):
        residual = np.mean(residuals, axis=0)
        probability = residual.copy()
        probability[np.arange(len(first)), first.label] += 1
        prediction = probability.argmax(1)
    return Examples(
        index=first.index,
        label=first.label,
        prediction=prediction,
        loss=np.mean([one.loss for one in every], axis=0),
        residual=residual,
    )


def _meta(every: Sequence[Scores], *, unit_rows: bool) -> dict[str, Any]:
    """What all say alike, of their curvatures too; the curvature of each by its place in the list."""
    first = every[0].meta
    alike = {name: value for name, value in first.items() if all(one.meta.get(name) == value for one in every)}
    curvatures = [one.meta.get("curvature", {}) for one in every]
    names = dict.fromkeys(one.get("name", "scores") for one in curvatures)
    warnings = list(dict.fromkeys(warning for one in every for warning in one.meta.get("warnings", [])))
    common = {name: value for name, value in curvatures[0].items() if all(one.get(name) == value for one in curvatures)}
    how = {"average": len(every)} | ({"unit_rows": True} if unit_rows else {})
    alike |= {"unit": UNIT_ROWS} if unit_rows else {}
    rows = ", each query's scores divided by their root mean square," if unit_rows else ""
    return alike | {
        "curvature": {**common, "name": "+".join(names), **how},
        "sign": f"mean over {len(every)}{rows} of: {first.get('sign', '')}",
        "runs": curvatures,
        "warnings": warnings,
    }
