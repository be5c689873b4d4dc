"""What a dear fit may use, and where it keeps what it has: a budget of memory, a keeper of tiles, somebody to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import psutil
from numpy.typing import NDArray

SHARE = 0.5  # of the memory that is free, where nobody names a budget: the other half is for what the libraries take
LEAST = 2**26


@runtime_checkable
class TileKeeper(Protocol):
    """Where tiles of a matrix that is dear to form are kept, so that a fit that was stopped goes on from there."""

    def open(self, key: Mapping[str, Any]) -> None:
        """Begin, or go on.

        Args:
            key: What the tiles depend on, ready for JSON; tiles kept under another key are dropped.
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

    @property
    def budget(self) -> int:
        """Bytes."""
        return max(LEAST, int(psutil.virtual_memory().available * SHARE) if self.memory is None else self.memory)


ANY = Work()
"""No budget named, nothing kept, nobody told."""
