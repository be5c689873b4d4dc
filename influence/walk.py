"""The walk over a matrix of scores, tile by tile: block of queries by block, and what they share computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import SolveError
from .examples import Progress

if TYPE_CHECKING:
    from .attribute import Fitted, Variant

ROW_BYTES = 2**26  # of solved queries in flight
COLUMN_BYTES = 2**28  # of train gradients in flight
NAMED = 3  # variants whose names progress shows


@runtime_checkable
class Sink(Protocol):
    """Where tiles go: arrays in memory, or a store."""

    def done(self, side: str, row_block: int, column_block: int) -> bool:
        """Whether a tile is there already.

        Args:
            side: "queries" or "train".
            row_block: Position of the tile down the grid.
            column_block: Position across.
        """

    def write(self, side: str, rows: slice, columns: slice, tile: NDArray[Any], block: tuple[int, int]) -> None:
        """Take a tile.

        Args:
            side: "queries" or "train".
            rows: Its queries.
            columns: Its train examples.
            tile: Scores [rows, columns].
            block: Its position on the grid.
        """


class ArraySink:
    """Tiles into arrays in memory.

    Args:
        shapes: Shape of the matrix of every side that will be written.
        dtype: "float32" or "float64".
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], dtype: str) -> None:
        self.matrices = {side: np.full(shape, np.nan, dtype=dtype) for side, shape in shapes.items()}

    def done(self, side: str, row_block: int, column_block: int) -> bool:
        """Nothing is there before it is written.

        Args:
            side: "queries" or "train".
            row_block: Position of the tile down the grid.
            column_block: Position across.

        Returns:
            False.
        """
        return False

    def write(self, side: str, rows: slice, columns: slice, tile: NDArray[Any], block: tuple[int, int]) -> None:
        """Put a tile in its place.

        Args:
            side: "queries" or "train".
            rows: Its queries.
            columns: Its train examples.
            tile: Scores [rows, columns].
            block: Its position on the grid; not needed here.
        """
        self.matrices[side][rows, columns] = tile


def tile_shape(p: int) -> tuple[int, int]:
    """Rows and columns of a tile: whole chunks of the store, within a budget of memory.

    Args:
        p: Number of analysed parameters.

    Returns:
        Rows, a multiple of 128 up to 2,048; columns, a multiple of 512 up to 4,096.
    """
    row = 8 * p
    rows = 128 * max(1, min(16, ROW_BYTES // (128 * row)))
    columns = 512 * max(1, min(8, COLUMN_BYTES // (512 * row)))
    return rows, columns


def write_scores(
    fitted: Sequence[Fitted], sinks: Mapping[str, Sink], grid: tuple[int, int], progress: Progress | None = None
) -> None:
    """Compute every tile that is not there yet.

    A block of queries is scored by every variant that it is the same block for, then comes the next block: what such variants
    share (the inner products with the train set, at whatever damping) is computed once.

    Args:
        fitted: The variants.
        sinks: Where the tiles of each go, by its name.
        grid: Rows and columns of a tile.
        progress: Told after each tile; tiles found finished count.
    """
    together: dict[tuple[int, str, str], list[Fitted]] = {}
    for one in fitted:
        for side in one.shapes:
            together.setdefault((id(one.prepared), one.variant.query_label, side), []).append(one)
    for (_, _, side), variants in together.items():
        _write_side(side, variants, sinks, grid, progress)


def _write_side(
    side: str, fitted: Sequence[Fitted], sinks: Mapping[str, Sink], grid: tuple[int, int], progress: Progress | None
) -> None:
    """The matrices of one side, of variants that take its losses at one label."""
    prepared, (m, n) = fitted[0].prepared, fitted[0].shapes[side]
    queries = prepared.side(
        side, fitted[0].variant.query_label
    )  # one object: what is kept for it is looked up by identity
    stage, done = stage_name(f"score {side}", [one.variant for one in fitted]), 0
    row_blocks, column_blocks = [*_blocks(m, grid[0])], [*_blocks(n, grid[1])]
    for i, rows in enumerate(row_blocks):
        for one in fitted:
            sink, solved = sinks[one.variant.name], None
            for j, columns in enumerate(column_blocks):
                if not sink.done(side, i, j):
                    if solved is None:
                        solved = one.variant.curvature.solve(one.state, queries, rows)
                    tile = one.variant.curvature.scores(one.state, solved, prepared.train, columns)
                    sink.write(side, rows, columns, _finite(tile, f"{side} {rows.start} to {rows.stop}"), (i, j))
                done += 1
                if progress is not None:
                    progress(stage, done, len(row_blocks) * len(column_blocks) * len(fitted))


def _finite(tile: torch.Tensor, what: str) -> NDArray[Any]:
    if not bool(torch.isfinite(tile).all()):
        raise SolveError(f"A score of {what} is NaN or infinite; raise the damping or cutoff.")
    array: NDArray[Any] = tile.cpu().numpy()
    return array


def stage_name(what: str, variants: Sequence[Variant]) -> str:
    """What progress is told: nothing is added for the main scores alone."""
    names = [variant.name or "main" for variant in variants]
    if names == ["main"]:
        return what
    return f"{what} ({', '.join(names) if len(names) <= NAMED else f'{names[0]} and {len(names) - 1} more'})"


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
