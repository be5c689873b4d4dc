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

    A tile reaches the disk before its `done` byte does, so a byte that is set can be believed.
    """

    def __init__(self, group: h5py.Group, contents: Contents, variant: str) -> None:
        self._group = group
        self._path = Path(group.file.filename)
        self._matrices = {m.side: m for m in contents.matrices if m.variant == variant}
        self._finished = {side: m.finished.astype(bool) for side, m in self._matrices.items()}

    def done(self, side: str, row_block: int, column_block: int) -> bool:
        """Whether a tile is there already.

        Args:
            side: "queries" or "train".
            row_block: Position of the tile down the grid.
            column_block: Position across.

        Returns:
            True when it is on disk.
        """
        return bool(self._finished[side][row_block, column_block])

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
            scores = self._group[f"scores/{side}"]
            scores[rows, columns] = np.asarray(tile, dtype=matrix.dtype)
            data_to_disk(scores)
            finished = self._group[f"done/{side}"]
            finished[block] = 1
            finished.flush()
        self._finished[side][block] = True
