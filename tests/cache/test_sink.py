"""Tiles into a store."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import stores
from hypothesis import given, settings
from hypothesis import strategies as st
from upweight.cache import layout
from upweight.cache.errors import StoreError
from upweight.cache.store import Store, VariantLayout, open_store

sizes = st.integers(1, 9)


@settings(max_examples=25)
@given(shape=st.tuples(sizes, sizes), tile=st.tuples(sizes, sizes), chunk=st.tuples(sizes, sizes), data=st.data())
def test_tiles_and_chunks_need_not_fit(tmp_path_factory, shape, tile, chunk, data):
    path = tmp_path_factory.mktemp("store") / "influence.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNKS", chunk)
        store = Store.create_or_resume(path, **stores.layout(*shape, tile, variants=[VariantLayout(name="")]))
    with store:
        todo = data.draw(st.permutations(stores.tiles(store)))
        half = len(todo) // 2
        stores.write(store, todo[:half])
        expected = np.full(shape, np.nan, np.float32)
        for _, side, i, j in todo[:half]:
            place = store.contents.matrix("", side).grid.slices(i, j)
            expected[place] = stores.matrix(store, "", side)[place]
        np.testing.assert_array_equal(store.file["scores/queries"][:], expected)
        stores.write(store, todo[half:])
        np.testing.assert_array_equal(store.file["scores/queries"][:], stores.matrix(store, "", "queries"))


def test_a_tile_off_the_grid_is_refused(tmp_path: Path):
    with Store.create_or_resume(tmp_path / "a.h5", **stores.layout(7, 5, (3, 2))) as store:
        sink = store.sink()
        for rows, columns, tile in (
            (slice(0, 4), slice(0, 2), np.zeros((4, 2))),
            (slice(0, 3), slice(0, 2), np.zeros((2, 3))),
            (slice(3, 6), slice(0, 2), np.zeros((3, 2))),
        ):
            with pytest.raises(
                StoreError, match=r"tile \(0, 0\) of queries covers rows 0 to 3 and columns 0 to 2; got"
            ):
                sink.write("queries", rows, columns, tile, (0, 0))
        assert not sink.done("queries", 0, 0)
    with open_store(tmp_path / "a.h5", allow_partial=True) as store:
        assert store.contents.tiles == (0, 15)


def test_a_byte_is_set_only_after_its_tile_is_on_disk(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.h5"
    seen = []

    def look(scores: h5py.Dataset) -> None:
        # through the file alone: another process would see this if the machine died here
        copy = tmp_path / "copy.h5"
        copy.write_bytes(path.with_name("a.h5.partial").read_bytes())
        with h5py.File(copy) as file:
            seen.append((file["scores/queries"][0, 0].item(), int(file["done/queries"][0, 0])))

    monkeypatch.setattr("upweight.cache.sink.data_to_disk", look)
    with Store.create_or_resume(path, **stores.layout()) as store:
        stores.write(store, stores.tiles(store)[:1])
    assert stores.tiles(store)[:1] == [("", "queries", 0, 0)]
    assert seen == [(10_000.0, 0)]


def test_a_partial_file_that_was_repacked_is_not_written(tmp_path: Path):
    path = tmp_path / "a.h5"
    Store.create_or_resume(path, **stores.layout()).close()
    with h5py.File(tmp_path / "a.h5.partial", "r+") as file:
        del file["scores/queries"]
        file.create_dataset("scores/queries", (7, 5), "f4", chunks=(7, 5), compression=9)
    with (
        Store.create_or_resume(path, **stores.layout()) as store,
        pytest.raises(StoreError, match=r"repacked before it was complete.*--overwrite"),
    ):
        store.sink()
