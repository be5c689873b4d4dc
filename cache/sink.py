"""Tiles into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .contents import Contents
from .errors import StoreError
from .files import data_to_disk
from .safe_open import hdf5_errors


class Sink:
    """Takes the tiles of one variant, in any order; a tile written twice is a tile written once.

    A tile reaches the disk before its `done` byte is set, so a byte that is set can be believed.
    """

    def __init__(self, group: h5py.Group, contents: Contents, variant: str) -> None:
        self._group = group
        self._path = Path(group.file.filename)
        self._complete = group.file.mode == "r" and contents.complete
        self._matrices = {m.side: m for m in contents.matrices if m.variant == variant}
        if group.file.mode != "r":
            for side in self._matrices:
                _check_plain(group[f"scores/{side}"], group[f"done/{side}"])

    def done(self, side: str, row_block: int, column_block: int) -> bool:
        """Whether a tile is there already.

        Args:
            side: "queries" or "train".
            row_block: Position of the tile down the grid.
            column_block: Position across.

        Returns:
            True when it is on disk.
        """
        if self._complete:  # the caller may cut tiles otherwise: of no matter any more
            return True
        return bool(self._group[f"done/{side}"][row_block, column_block])

    def write(self, side: str, rows: slice, columns: slice, tile: NDArray[Any], block: tuple[int, int]) -> None:
        """Put a tile in its place.

        Args:
            side: "queries" or "train".
            rows: Its rows of the matrix.
            columns: Its columns.
            tile: Scores [rows, columns].
            block: Its position on the grid.

        Raises:
            StoreError: The tile is not of this grid, the file is complete and read-only, or the disk fails.
        """
        if not self._group:
            raise StoreError(f"{self._path} was closed; open it again with Store.create_or_resume.")
        path, matrix = self._path, self._matrices[side]
        wanted = matrix.grid.slices(*block)
        shape = tuple(part.stop - part.start for part in wanted)
        if (rows, columns) != wanted or tile.shape != shape:
            raise StoreError(
                f"{path}: tile {block} of {side} covers rows {wanted[0].start} to {wanted[0].stop} and columns {wanted[1].start} "
                f"to {wanted[1].stop}; got {tile.shape} for {rows} and {columns}. Walk the grid that the store was made with."
            )
        if self._group.file.mode == "r":
            raise StoreError(f"{path} is complete and read-only; ask `done` before writing a tile.")
        with hdf5_errors(path):
            scores, done = self._group[f"scores/{side}"], self._group[f"done/{side}"]
            _write_chunks(scores, rows, columns, tile)
            data_to_disk(scores)
            finished = done[...]
            finished[block] = 1
            done.id.write_direct_chunk((0, 0), finished.tobytes())  # its only chunk


def _check_plain(scores: h5py.Dataset, done: h5py.Dataset) -> None:
    packed = any(data.id.get_create_plist().get_nfilters() for data in (scores, done))
    if packed or scores.chunks is None or done.chunks != done.shape:
        raise StoreError(
            f"{scores.file.filename} was repacked before it was complete, and cannot be continued. Rebuild it with --overwrite."
        )


def _write_chunks(scores: h5py.Dataset, rows: slice, columns: slice, tile: NDArray[Any]) -> None:
    """Write whole chunks straight to their place in the file.

    What HDF5 holds back and fails to write later, on a full or broken disk, it tries to write again when the file is closed and
    when the process ends, and crashes there. Nothing is held back this way, and a failure shows at once.
    """
    height, width = scores.chunks
    for top in range(rows.start // height * height, rows.stop, height):
        for left in range(columns.start // width * width, columns.stop, width):
            here = slice(top, min(top + height, len(scores))), slice(left, min(left + width, scores.shape[1]))
            inner = [_overlap(*pair) for pair in zip(here, (rows, columns), strict=True)]
            chunk = np.full((height, width), np.nan, scores.dtype)
            if inner != [*here]:  # the rest of the chunk belongs to other tiles
                chunk[: here[0].stop - top, : here[1].stop - left] = scores[here]
            to = tuple(
                slice(part.start - first, part.stop - first) for part, first in zip(inner, (top, left), strict=True)
            )
            of = tuple(
                slice(part.start - all_.start, part.stop - all_.start)
                for part, all_ in zip(inner, (rows, columns), strict=True)
            )
            chunk[to] = tile[of]
            scores.id.write_direct_chunk((top, left), chunk.tobytes())


def _overlap(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))
