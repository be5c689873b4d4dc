"""A new file is whole before the first tile, and says of itself what the format asks."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import stores
from upweight import UsageError
from upweight.cache.files import partial_path
from upweight.cache.layout import Grid, VariantLayout
from upweight.cache.store import Store, open_store, variant_names


def chunks(data: h5py.Dataset) -> list[tuple[int, int]]:
    """Where the chunks of a data set lie in the file: offset and length."""
    found = [data.id.get_chunk_info(i) for i in range(data.id.get_num_chunks())]
    return [(chunk.byte_offset, chunk.size) for chunk in found]


def test_writing_tiles_changes_nothing_but_plain_data(tmp_path: Path):
    # this is why a process killed at any moment leaves a sound file
    path = tmp_path / "influence.h5"
    arguments = stores.layout(300, 1100, (128, 512))
    with Store.create_or_resume(path, **arguments) as store:
        places = []
        for m in store.contents.matrices:
            places += chunks(store.file[f"scores/{m.side}"]) + chunks(store.file[f"done/{m.side}"])
    before = np.fromfile(partial_path(path), np.uint8)
    with Store.create_or_resume(path, **arguments) as store:
        stores.write(store)
    after = np.fromfile(partial_path(path), np.uint8)
    assert len(after) == len(before)
    changed = before != after
    assert changed.sum() > 300 * 1100
    for offset, length in places:
        changed[offset : offset + length] = False
    assert np.flatnonzero(changed).tolist() == []


def test_every_byte_of_the_scores_is_taken_at_once(tmp_path: Path):
    path = tmp_path / "influence.h5"
    with Store.create_or_resume(path, **stores.layout(300, 1100, (128, 512))) as store:
        assert {m.side: store.file[f"scores/{m.side}"].id.get_storage_size() for m in store.contents.matrices} == {
            "queries": 3 * 128 * 3 * 512 * 4,
            "train": 9 * 128 * 3 * 512 * 4,
        }
        assert np.isnan(store.file["scores/queries"][:]).all()
        assert store.file["scores/queries"].chunks == (128, 512)
        assert store.file["scores/queries"].compression is None


def test_what_the_format_promises_is_there(tmp_path: Path):
    path = stores.complete(tmp_path / "influence.h5", m=7, n=5)
    with h5py.File(path) as file:
        text = {name: value.decode() for name, value in file.attrs.items() if isinstance(value, bytes)}
        assert (text["format"], text["version"]) == ("upweight-influence", "1.0")
        assert (file.attrs["query_count"], file.attrs["train_count"]) == (7, 5)
        assert text["config_json"] == '{"damping": 0.0, "k": 1, "curvature": {"name": "linear-head"}}'
        assert len(text["config_digest"]) == 64
        assert text["hashes_json"] == '{"model": "mmmmmmmm", "data": "dddddddd"}'
        assert {"created", "versions_json"} <= text.keys()
        for name, axes in (("scores/queries", "query,train"), ("scores/train", "train,train")):
            attributes = file[name].attrs
            assert attributes["axes"].decode() == axes
            assert attributes["unit"] == b"nats per unit weight"
            assert attributes["sign"] == b"+g_query H^+ g_train; positive = helpful"
        assert file["scores/queries"].dtype == np.dtype("<f4")
        assert file["scores/queries"].chunks == (7, 5)
        assert file["scores"].attrs["curvature_json"] == b'{"name": "LinearHead", "damping": 0.0, "rcond": null}'
        assert dict(file["done/queries"].attrs) == {"rows_per_tile": 3, "columns_per_tile": 2}
        assert file["done/queries"][...].tolist() == [[1, 1, 1]] * 3
        assert file["spectrum/eigenvalues"][...].tolist() == [3.0, 0.5, 0.0, 0.0]
        assert dict(file["spectrum"].attrs).items() >= {"rank": 2, "sensitivity.top1_changed_at_0.1x": 0.25}.items()
        assert {name: file["queries"][name].dtype.name for name in file["queries"]} == {
            "index": "int64",
            "label": "int64",
            "prediction": "int64",
            "loss": "float64",
            "residual": "float64",
            "features": "float32",
        }


def test_a_variants_own_unit_and_sign_stand_at_its_scores(tmp_path: Path):
    cosine = VariantLayout(name="cosine", attributes={"unit": "none", "sign": "cosine"})
    path = stores.complete(tmp_path / "influence.h5", variants=[VariantLayout(name=""), cosine])
    with h5py.File(path) as file:
        assert file["variants/cosine/scores/queries"].attrs["unit"] == b"none"
        assert file["scores/queries"].attrs["unit"] == b"nats per unit weight"


def test_fields_that_are_not_known_are_absent(tmp_path: Path):
    train = stores.examples(5, optional=False)
    path = stores.complete(tmp_path / "influence.h5", m=None, train=train, variants=[VariantLayout(name="")])
    with h5py.File(path) as file:
        assert set(file["train"]) == {"index", "label", "prediction", "loss"}
        assert "queries" not in file
        assert "spectrum" not in file
        assert set(file["scores"]) == {"train"}
    with open_store(path) as store:
        scores = store.scores()
        assert scores.train.residual is None
        assert scores.train.features is None
        assert scores.spectrum is None


@pytest.mark.parametrize("name", ["a/b", ".", "..", ".a", "", "a b", "=1", "a\n", 65 * "a"])
def test_names_that_could_leave_their_place_are_refused(tmp_path: Path, name: str):
    if name == "":
        assert VariantLayout(name="").name == ""  # the scores at the root
        return
    with pytest.raises(UsageError, match="letters, digits"):
        VariantLayout(name=name)


@pytest.mark.parametrize("name", ["damping=0.01", "damping=1e-07", "damping=1e+20", "a-b_c", 64 * "a"])
def test_a_variant_lies_under_its_name(tmp_path: Path, name: str):
    variants = [VariantLayout(name=""), VariantLayout(name=name)]
    with Store.create_or_resume(tmp_path / "a.h5", **stores.layout(variants=variants)) as store:
        stores.write(store)
        store.finish()
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file["variants"]) == [name]
        assert file[f"variants/{name}/scores/queries"].shape == (7, 5)
    assert variant_names(tmp_path / "a.h5") == ("", name)


def test_two_variants_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="different names"):
        Store.create_or_resume(
            tmp_path / "a.h5", **stores.layout(variants=[VariantLayout(name="a"), VariantLayout(name="a")])
        )
    assert stores.names(tmp_path) == []


def test_attributes_of_the_format_cannot_be_given(tmp_path: Path):
    with pytest.raises(UsageError, match="The attribute version is the format's own"):
        Store.create_or_resume(tmp_path / "a.h5", **stores.layout(attributes={"version": 3}))
    assert stores.names(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "columns", "tile", "blocks"), [(7, 5, (3, 2), (3, 3)), (6, 4, (3, 2), (2, 2)), (1, 1, (9, 9), (1, 1))]
)
def test_a_grid_covers_each_entry_once(rows: int, columns: int, tile: tuple[int, int], blocks: tuple[int, int]):
    grid = Grid(rows, columns, *tile)
    assert grid.blocks == blocks
    covered = np.zeros((rows, columns), int)
    for i in range(blocks[0]):
        for j in range(blocks[1]):
            covered[grid.slices(i, j)] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("tile", [(0, 2), (3, -1)])
def test_a_tile_without_rows_or_columns_is_refused(tmp_path: Path, tile: tuple[int, int]):
    with pytest.raises(UsageError, match="at least one row and column"):
        Store.create_or_resume(tmp_path / "a.h5", **stores.layout(tile=tile))
    assert stores.names(tmp_path) == []
