"""One writer at a time: an advisory lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

from .errors import StoreError


class Lock:
    """Holds `<path>.lock` until released; the operating system releases it when the process dies.

    HDF5's own locking is not enough: it covers neither the making of a new file nor the rename at the end.

    Args:
        path: The file whose writing is guarded.

    Raises:
        StoreError: Another process holds the lock.
        OSError: The lock file cannot be made, for instance because the folder may not be written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _try_lock(fd):
                holder = os.read(fd, 32).decode(errors="replace").strip()
                os.close(fd)
                raise StoreError(
                    f"{path} is being written by another process{f' ({holder})' if holder else ''}; "
                    "wait for it to end, or stop it, and run the same command again."
                )
            if _same_file(fd, self._path):
                break
            os.close(fd)  # its holder finished and removed it between our open and our lock
        os.ftruncate(fd, 0)
        os.write(fd, f"pid {os.getpid()}\n".encode())
        self._release = weakref.finalize(self, _release, fd, self._path)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        self._release()


def _release(fd: int, path: Path) -> None:
    with suppress(OSError):
        if sys.platform != "win32" and _same_file(fd, path):
            path.unlink()  # while the lock is held: nobody else can have taken this name in the meantime
    _unlock(fd)
    os.close(fd)
    if sys.platform == "win32":
        with suppress(OSError):
            path.unlink()


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        with suppress(OSError):
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks: one writer at a time is then up to the user
        return True

    def _unlock(fd: int) -> None:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # explicitly: a forked data loader shares the descriptor and may outlive us
