"""Saving scores, opening them, and asking what is there."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import stores
from upweight.cache import store as module
from upweight.cache.errors import StoreError, StoreMismatch
from upweight.cache.store import (
    Store,
    VariantLayout,
    finished_variants,
    open_scores,
    open_store,
    save_scores,
    variant_names,
)
from upweight.influence.scores import Scores

META = {
    "curvature": {"name": "Hessian", "damping": 0.1},
    "query_label": "true",
    "warnings": [],
    "versions": {"upweight": "0.0.9"},
}


def in_memory(m: int | None = 7, n: int = 5, dtype: str = "float32", seed: int = 0) -> Scores:
    """Scores as `attribute` returns them without `out=`."""
    rng = np.random.default_rng(seed)
    train = stores.examples(n, 2)
    square = rng.standard_normal((n, n)).astype(dtype)
    on_train = Scores(square, train, train, spectrum=stores.SPECTRUM, meta=META, on_itself=True)
    if m is None:
        return on_train
    matrix = rng.standard_normal((m, n)).astype(dtype)
    return Scores(matrix, stores.examples(m, 1), train, spectrum=stores.SPECTRUM, meta=META, on_train=on_train)


def same(one: Scores, other: Scores) -> None:
    """Fail unless two results are the same in everything that a reader can ask."""
    np.testing.assert_array_equal(one.matrix[:], other.matrix[:])
    assert one.matrix.dtype == other.matrix.dtype
    assert one.on_itself == other.on_itself
    stores.same_examples(one.queries, other.queries)
    stores.same_examples(one.train, other.train)
    assert one.spectrum.to_dict() == other.spectrum.to_dict()
    np.testing.assert_array_equal(one.spectrum.eigenvalues, other.spectrum.eigenvalues)
    assert {**one.meta, "unit": "", "sign": ""} == {**other.meta, "unit": "", "sign": ""}
    assert (one.on_train is None) == (other.on_train is None)
    if one.on_train is not None:
        same(one.on_train, other.on_train)
    assert one.top(0, k=3).rows() == other.top(0, k=3).rows()


class TestSave:
    @pytest.mark.parametrize("m", [7, None], ids=["queries", "on itself"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_save_then_open_is_identity(self, tmp_path: Path, m: int | None, dtype: str):
        scores = in_memory(m, dtype=dtype)
        scores.save(tmp_path / "scores.h5")
        same(open_scores(tmp_path / "scores.h5"), scores)
        assert os.listdir(tmp_path) == ["scores.h5"]

    def test_blocks_of_rows(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(module, "SAVED_ROWS", 3)
        save_scores(in_memory(), tmp_path / "scores.h5")
        same(open_scores(tmp_path / "scores.h5"), in_memory())

    def test_scores_in_one_store_go_into_another(self, tmp_path: Path):
        damped = VariantLayout(name="damped", attributes={"note": "x"})
        stores.complete(tmp_path / "run.h5", variants=[VariantLayout(name=""), damped])
        scores = open_scores(tmp_path / "run.h5", "damped")
        scores.save(tmp_path / "damped.h5")
        assert variant_names(tmp_path / "damped.h5") == ("",)
        again = open_scores(tmp_path / "damped.h5")
        np.testing.assert_array_equal(again.matrix[:], scores.matrix[:])
        assert again.meta == scores.meta
        assert again.spectrum is None

    def test_what_is_there_is_not_replaced_unasked(self, tmp_path: Path):
        path = tmp_path / "scores.h5"
        in_memory(seed=0).save(path)
        in_memory(seed=0).save(path)  # the same once more
        with pytest.raises(StoreMismatch, match=r"saved\.scores\.queries=[0-9a-f]{64}.*overwrite=True.*another path"):
            in_memory(seed=1).save(path)
        same(open_scores(path), in_memory(seed=0))
        save_scores(in_memory(seed=1), path, overwrite=True)
        same(open_scores(path), in_memory(seed=1))

    def test_half_precision_is_kept_in_single(self, tmp_path: Path):
        scores = in_memory()
        scores.matrix = scores.matrix.astype(np.float16)
        scores.save(tmp_path / "scores.h5")
        np.testing.assert_array_equal(open_scores(tmp_path / "scores.h5").matrix[:], scores.matrix)


class TestOpen:
    def test_the_matrix_is_read_from_the_file_as_it_is_used(self, tmp_path: Path):
        path = stores.complete(tmp_path / "influence.h5")
        scores = open_scores(path)
        gc.collect()  # nobody holds the store
        variant_names(path)  # another one is opened and closed meanwhile
        assert isinstance(scores.matrix, h5py.Dataset)
        assert scores.matrix[6].tolist() == [10_000 + i / 8 for i in range(30, 35)]
        assert scores.top(0, k=1)["score"].tolist() == [10_000 + 4 / 8]
        assert scores.self_influence().tolist() == [15_000 + 6 * i / 8 for i in range(5)]

    def test_the_file_is_closed_with_the_last_reference(self, tmp_path: Path):
        path = stores.complete(tmp_path / "influence.h5")
        scores = open_scores(path)
        del scores
        gc.collect()
        with h5py.File(path, "r+"):  # refused while it is open for reading
            pass

    def test_scores_end_with_the_store_they_came_from(self, tmp_path: Path):
        with open_store(stores.complete(tmp_path / "influence.h5")) as store:
            scores = store.scores()
            assert scores.matrix[0, 0] == 10_000
        assert not scores.matrix

    def test_a_partial_file_is_opened_by_either_name(self, tmp_path: Path):
        path = tmp_path / "influence.h5"
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store, stores.tiles(store)[:2])
        for name in (path, tmp_path / "influence.h5.partial"):
            with pytest.raises(StoreError, match=r"influence\.h5 is not complete: 2 of 15 tiles"):
                open_store(name)
            with open_store(name, allow_partial=True) as store:
                assert store.contents.tiles == (2, 15)
                assert store.path == path


class TestFinishedVariants:
    @pytest.mark.parametrize("path", [".", "/"])
    def test_a_path_that_names_no_file(self, path: str):
        with pytest.raises(StoreError, match="is a folder; give the path of a file"):
            open_scores(path)

    def test_nothing_there(self, tmp_path: Path):
        assert finished_variants(tmp_path / "influence.h5", {}) is None

    def test_complete(self, tmp_path: Path):
        path = stores.complete(
            tmp_path / "influence.h5", variants=[VariantLayout(name=""), VariantLayout(name="damped")]
        )
        assert finished_variants(path, stores.layout()["config"]) == ("", "damped")

    @pytest.mark.parametrize("finished", [True, False])
    def test_other_settings(self, tmp_path: Path, finished: bool):
        path = tmp_path / "influence.h5"
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store)
            if finished:
                store.finish()
        with pytest.raises(StoreMismatch, match=r"damping=0\.0.*damping=7"):
            finished_variants(path, {**stores.layout()["config"], "damping": 7})
        assert finished_variants(path, {"damping": 7}, overwrite=True) is None

    def test_begun(self, tmp_path: Path):
        path = tmp_path / "influence.h5"
        Store.create_or_resume(path, **stores.layout()).close()
        assert finished_variants(path, stores.layout()["config"]) is None
