"""What a dear fit may use, and where it keeps what it has: a budget of memory, a keeper of tiles, somebody to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import psutil
import torch
from numpy.typing import NDArray

SHARE = 0.5  # of the memory that is free, where nobody names a budget: the other half is for what the libraries take
LEAST = 2**26


@runtime_checkable
class TileKeeper(Protocol):
    """Where tiles of a matrix that is dear to form are kept, so that a fit that was stopped goes on from there."""

    def open(self, key: Mapping[str, Any], block: int) -> int:
        """Begin, or go on.

        Args:
            key: What the tiles depend on, ready for JSON; tiles kept under another key are dropped.
            block: Examples in a block of tiles.

        Returns:
            The same, or the size of the blocks that tiles were kept of under this key.
        """

    def get(self, name: str) -> NDArray[Any] | None:
        """A tile that was kept.

        Args:
            name: Its name.

        Returns:
            The tile; None when it is not there whole.
        """

    def put(self, name: str, tile: NDArray[Any]) -> None:
        """Keep a tile; it is on disk when this returns.

        Args:
            name: Its name.
            tile: The numbers.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """The circumstances of a fit; none of them changes a number beyond rounding."""

    memory: int | None = None
    """Bytes that matrices and blocks of rows may take; None: half of what is free."""
    tiles: TileKeeper | None = None
    """Keeper of tiles; None: they live in memory alone."""
    told: Callable[[int, int], None] | None = None
    """Called with tiles done and their number."""

    def room(self, device: torch.device | str = "cpu") -> int:
        """Bytes there are for matrices that a fit cannot do without.

        Args:
            device: Where it computes.

        Returns:
            The budget that was named, or all that is free there.
        """
        return self.memory if self.memory is not None else int(self.budget(device) / SHARE)

    def budget(self, device: torch.device | str = "cpu") -> int:
        """Bytes that a fit may take.

        Args:
            device: Where it computes.

        Returns:
            The budget that was named, or half of what is free there.
        """
        if self.memory is not None:
            return self.memory
        if torch.device(device).type == "cuda":
            return max(LEAST, int(torch.cuda.mem_get_info(device)[0] * SHARE))
        return max(LEAST, int(psutil.virtual_memory().available * SHARE))


ANY = Work()
"""No budget named, nothing kept, nobody told."""
