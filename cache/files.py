"""Files in the making: a temporary name, the wish to reach the disk, the rename that says "complete"."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py

from .errors import StoreError
from .safe_open import PARTIAL, hdf5_errors

NEW = ".new"
"""Added to the name of a partial file whose layout is not finished: it holds nothing worth keeping."""


def partial_path(path: Path) -> Path:
    """The name of a store while it is being written.

    Args:
        path: Its final name.

    Returns:
        The final name with ".partial" added.

    Raises:
        StoreError: The path has no last part that could name a file.
    """
    if not path.name:
        raise StoreError(f"{path} is a folder; give the path of a file, such as influence.h5.")
    return path.with_name(path.name + PARTIAL)


def find(path: Path) -> tuple[Path, Path]:
    """The file that holds a store, complete or not.

    Args:
        path: Its final name, or the one it has while it is being written.

    Returns:
        The file that is there, and the final name; the complete file when both are there and the final name was given.
    """
    if path.name.endswith(PARTIAL):
        return path, path.with_name(path.name.removesuffix(PARTIAL))
    partial = partial_path(path)
    with hdf5_errors(path):
        return (partial if not path.exists() and partial.exists() else path), path


def incomplete(path: Path, done: int, total: int, unit: str = "tiles") -> str:
    """The sentence for a store that cannot be used yet.

    Args:
        path: Its final name.
        done: What is there of it.
        total: What there will be.
        unit: What is counted.

    Returns:
        What is there and the mend.
    """
    return f"{path} is not complete: {done} of {total} {unit} are done. Run the command that writes it again; it continues there."


def make_partial(path: Path, size: int, lay_out: Callable[[h5py.File], None]) -> None:
    """Make a partial file that is whole from the moment it has its name.

    Args:
        path: Its name, free or to be replaced.
        size: Bytes it will take, about.
        lay_out: Fills a new file.

    Raises:
        StoreError: The disk is full or may not be written to; nothing is left behind.
    """
    new = path.with_name(path.name + NEW)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise StoreError(
            f"{path} needs {size / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free. "
            "Free some space, or choose another place with --out DIR."
        )
    with hdf5_errors(path):
        new.unlink(missing_ok=True)  # left by a process that was killed here
        file = h5py.File(new, "x", locking=False)
        try:
            lay_out(file)
            to_disk(file)
            file.close()
            os.replace(new, path)
            _directory_to_disk(path.parent)
        except BaseException:
            with suppress(OSError, RuntimeError, ValueError):  # of a close that fails on the same full disk
                file.close()
            new.unlink(missing_ok=True)
            raise


def complete(file: h5py.File, partial: Path, path: Path) -> None:
    """Give a finished file its final name; what had that name is replaced in the same instant.

    Args:
        file: The open file; closed here.
        partial: Its name so far.
        path: Its final name.

    Raises:
        StoreError: The disk is full or may not be written to; the partial file stays.
    """
    with hdf5_errors(partial):
        to_disk(file)
        file.close()
        os.replace(partial, path)
        _directory_to_disk(path.parent)


def to_disk(file: h5py.File) -> None:
    """Hand everything to the disk, past HDF5's buffers and the operating system's.

    Args:
        file: An open file.
    """
    file.flush()
    os.fsync(file.id.get_vfd_handle())


def data_to_disk(data: h5py.Dataset) -> None:
    """The same for values that were written chunk by chunk, past HDF5's buffers.

    Args:
        data: Their data set.
    """
    _sync_data(data.file.id.get_vfd_handle())


_sync_data = getattr(
    os, "fdatasync", os.fsync
)  # no length or structure changes, so where it exists the cheaper one does


def _directory_to_disk(folder: Path) -> None:
    if sys.platform == "win32":
        return  # has no such call
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it
            os.fsync(fd)
    finally:
        os.close(fd)
