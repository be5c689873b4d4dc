"""Tiles of a matrix that is dear to form, beside the store that it is formed for: a run that was stopped goes on from them.

They lie in a folder of their own, one .npy file each, because HDF5 gives no space back: when the store is complete the folder
is taken away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import StoreError
from .provenance import digest, plain

SUFFIX = ".tiles"
KEY_FILE = "key.json"


class Scratch:
    """Keeper of tiles for one store; a tile is there whole or not at all.

    Args:
        store: The store that they are for; the folder is called after it.
        identity: What the tiles depend on that their maker does not know: weights and data.
    """

    def __init__(self, store: Path, identity: Mapping[str, Any]) -> None:
        self.root = store.with_name(store.name + SUFFIX)
        self._identity = dict(identity)
        self._folder: Path | None = None

    def open(self, key: Mapping[str, Any], block: int) -> int:
        """Begin, or go on.

        Args:
            key: What the tiles depend on, ready for JSON; those of another key stay out of sight.
            block: Examples in a block of tiles.

        Returns:
            The same, or the size of the blocks that tiles were kept of under this key.
        """
        whole = plain({**self._identity, **key})
        self._folder = self.root / digest(whole)[:16]
        with _disk_errors(self.root):
            file = self._folder / KEY_FILE
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                held = json.loads(file.read_text(encoding="utf-8"))
                if held["key"] == whole and int(held["block"]) > 0:
                    return int(held["block"])
            shutil.rmtree(self._folder, ignore_errors=True)  # of a stopped beginning nothing can be told
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(file, json.dumps({"key": whole, "block": block}).encode())
        return block

    def get(self, name: str) -> NDArray[Any] | None:
        """A tile that was kept.

        Args:
            name: Its name.

        Returns:
            The tile; None when it is not there, or damaged.
        """
        assert self._folder is not None  # opened first
        try:
            tile: NDArray[Any] = np.load(self._folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return tile if tile.dtype == np.float64 and bool(np.isfinite(tile).all()) else None

    def put(self, name: str, tile: NDArray[Any]) -> None:
        """Keep a tile; it is on disk when this returns.

        Args:
            name: Its name.
            tile: The numbers.
        """
        assert self._folder is not None  # opened first
        with _disk_errors(self.root):
            _write(self._folder / f"{name}.npy", tile)

    def remove(self) -> None:
        """Take everything away: the store is complete."""
        shutil.rmtree(self.root, ignore_errors=True)


def _write(file: Path, content: bytes | NDArray[Any]) -> None:
    """Give a file its name when all of it is on disk."""
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    with new.open("wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            np.save(stream, np.ascontiguousarray(content), allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


@contextmanager
def _disk_errors(root: Path) -> Generator[None]:
    """Turn what the disk refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{root}: {error.strerror or error}; make room there, or write the store to another place."
        ) from error
