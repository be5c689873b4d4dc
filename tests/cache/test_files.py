"""Names on the way to a complete file."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
import stores
from upweight.cache.errors import StoreError
from upweight.cache.files import find, make_partial, partial_path
from upweight.cache.store import Store


def test_a_disk_without_room_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(
        StoreError, match=r"influence\.h5\.partial needs 0\.00 GB and its disk has 0\.00 GB free\. Free some"
    ):
        Store.create_or_resume(tmp_path / "influence.h5", **stores.layout())
    assert stores.names(tmp_path) == []


def test_the_needed_room_is_known(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "upweight.cache.handle.make_partial",
        lambda path, size, lay: asked.append(size) or make_partial(path, size, lay),
    )
    path = stores.complete(tmp_path / "influence.h5", m=300, n=1100, tile=(128, 512))
    assert asked[0] <= path.stat().st_size <= asked[0] + 40_000


def test_what_a_killed_layout_left_is_cleared_away(tmp_path: Path):
    (tmp_path / "influence.h5.partial.new").write_bytes(b"half a file")
    stores.complete(tmp_path / "influence.h5")
    assert stores.names(tmp_path) == ["influence.h5"]


def test_a_layout_that_fails_leaves_nothing(tmp_path: Path):
    def broken(file: object) -> None:
        raise KeyError("spectrum")

    with pytest.raises(StoreError, match="spectrum"):
        make_partial(tmp_path / "influence.h5.partial", 1, broken)
    assert stores.names(tmp_path) == []


def test_a_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match=r"could not be read or written: (File exists|Not a directory)"):
        Store.create_or_resume(tmp_path / "run" / "influence.h5", **stores.layout())


def test_find(tmp_path: Path):
    path = tmp_path / "influence.h5"
    assert find(path) == (path, path)
    partial_path(path).write_text("")
    assert find(path) == (partial_path(path), path)
    assert find(partial_path(path)) == (partial_path(path), path)
    path.write_text("")
    assert find(path) == (path, path)
