"""One writer at a time."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest
from upweight.cache import lock as module
from upweight.cache.errors import StoreError
from upweight.cache.lock import Lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "influence.h5"


def test_the_second_is_told_who_holds_it(path: Path):
    lock = Lock(path)
    with pytest.raises(StoreError, match=rf"influence\.h5 is being written by another process \(pid {os.getpid()}\)"):
        Lock(path)
    lock.release()
    Lock(path).release()


def test_nothing_is_left_behind(path: Path):
    lock = Lock(path)
    lock.release()
    lock.release()
    assert os.listdir(path.parent) == []


def test_a_lock_that_is_forgotten_is_free(path: Path):
    Lock(path)
    gc.collect()
    Lock(path).release()


def test_the_file_of_a_dead_process_does_not_bar_the_way(path: Path):
    path.with_name("influence.h5.lock").write_text("pid 4194305, long gone")
    lock = Lock(path)
    assert path.with_name("influence.h5.lock").read_text() == f"pid {os.getpid()}\n"
    lock.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(path: Path, monkeypatch):
    # the other process ends, and removes its lock file, between our opening and our locking it
    honest, tries = module._try_lock, []

    def late(fd: int) -> bool:
        tries.append(fd)
        if len(tries) == 1:
            path.with_name("influence.h5.lock").unlink()
        return honest(fd)

    monkeypatch.setattr(module, "_try_lock", late)
    lock = Lock(path)
    assert len(tries) == 2
    assert path.with_name("influence.h5.lock").exists()
    lock.release()


@pytest.mark.skipif(os.name == "nt", reason="flock is of Unix")
def test_a_file_system_without_locks_is_no_obstacle(path: Path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    Lock(path).release()
    assert os.listdir(path.parent) == []
