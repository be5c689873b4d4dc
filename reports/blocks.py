"""An influence matrix brought down to screen size in one pass over its rows: sorted by class, averaged block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """One axis of a matrix, sorted by class and cut into blocks; no block holds two classes."""

    order: NDArray[np.int64]
    """Stored positions in sorted order [N]; stable within a class."""
    starts: NDArray[np.int64]
    """First sorted position of each block [blocks]."""
    block: NDArray[np.int64]
    """Block of every stored position [N]."""
    classes: NDArray[np.int64]
    """Classes that occur, ascending."""
    bounds: NDArray[np.int64]
    """First block of each of those classes, and the number of blocks at the end."""
    counts: NDArray[np.int64]
    """Examples of each of those classes."""

    @classmethod
    def of(cls, labels: NDArray[np.int64], pixels: int) -> Axis:
        """The axis of some examples.

        Args:
            labels: Class of every example [N].
            pixels: About the largest number of blocks; each class has at least one.

        Returns:
            Blocks of nearly equal size; one example each where N is at most `pixels`.
        """
        order = np.argsort(labels, kind="stable")
        classes, counts = np.unique(labels, return_counts=True)
        share = (
            counts
            if len(labels) <= pixels
            else np.maximum(1, np.floor(counts * (pixels / len(labels))).astype(np.int64))
        )
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        starts = np.concatenate([f + np.arange(s) * c // s for f, c, s in zip(first, counts, share, strict=True)])
        block = np.empty(len(labels), np.int64)
        block[order] = np.searchsorted(starts, np.arange(len(labels)), side="right") - 1
        bounds = np.concatenate([[0], np.cumsum(share)])
        return cls(order=order, starts=starts, block=block, classes=classes, bounds=bounds, counts=counts)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples in each block."""
        return np.diff(self.starts, append=len(self.order))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """A matrix at screen size, in the unit of its scores."""

    rows: Axis
    columns: Axis
    values: NDArray[np.float64]
    """Mean score of each block [row blocks, column blocks]."""
    class_means: NDArray[np.float64]
    """Mean score by query class and train class; self left out, NaN where nothing else is left."""
    frobenius: float
    """Frobenius norm of the whole matrix, self included."""
    shape: tuple[int, int]

    @property
    def rms(self) -> float:
        """Root mean square score: the Frobenius norm over the root of the number of scores."""
        return self.frobenius / float(np.sqrt(self.shape[0] * self.shape[1]))


def average(
    matrix: Any, row_labels: NDArray[np.int64], column_labels: NDArray[np.int64], pixels: int, on_itself: bool
) -> Blocks:
    """Read a matrix once, some rows at a time, and average it.

    Args:
        matrix: Scores [m, n]: an array, or an HDF5 dataset that is read slice by slice.
        row_labels: True class of every query [m].
        column_labels: True class of every train example [n].
        pixels: About the largest number of blocks along one axis.
        on_itself: Rows and columns are the same examples, so the diagonal is left out of the class means.

    Returns:
        The blocks, in float64.
    """
    rows, columns = Axis.of(row_labels, pixels), Axis.of(column_labels, pixels)
    m, n = len(row_labels), len(column_labels)
    sums = np.zeros((len(rows.starts), len(columns.starts)))
    squares = 0.0
    own = np.zeros(m if on_itself else 0)
    step = max(1, CHUNK_BYTES // (8 * n))
    for start in range(0, m, step):
        part = slice(start, min(start + step, m))
        scores = np.asarray(matrix[part], dtype=np.float64)  # [b, n]
        squares += float(np.einsum("bn,bn->", scores, scores))
        if on_itself:
            own[part] = scores[np.arange(len(scores)), np.arange(part.start, part.stop)]
        np.add.at(sums, rows.block[part], np.add.reduceat(scores[:, columns.order], columns.starts, axis=1))
    by_class = np.add.reduceat(np.add.reduceat(sums, rows.bounds[:-1], axis=0), columns.bounds[:-1], axis=1)
    pairs = np.outer(rows.counts, columns.counts).astype(np.float64)
    if on_itself:
        by_class[np.diag_indices_from(by_class)] -= np.array([own[row_labels == c].sum() for c in rows.classes])
        pairs[np.diag_indices_from(pairs)] -= rows.counts
    return Blocks(
        rows=rows,
        columns=columns,
        values=sums / np.outer(rows.sizes, columns.sizes),
        class_means=np.divide(by_class, pairs, out=np.full_like(by_class, np.nan), where=pairs > 0),
        frobenius=float(np.sqrt(squares)),
        shape=(m, n),
    )
