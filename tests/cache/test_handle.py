"""Creating, resuming, refusing, finishing and reading a store."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import stores
from hypothesis import given, settings
from hypothesis import strategies as st
from upweight import UsageError
from upweight.cache.errors import ForeignFile, StoreError, StoreMismatch
from upweight.cache.store import Store, VariantLayout, open_scores, open_store

DAMPED = VariantLayout(name="damped", attributes={"query_label": "true", "curvature": {"damping": 5e-4}})
sizes = st.integers(1, 12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "influence.h5"


def same_matrices(path: Path, *, of: Path) -> None:
    """Fail unless two files hold the same scores, bit for bit, and the same everything but for the time they were made."""
    with h5py.File(path) as one, h5py.File(of) as other:
        names: list[str] = []
        other.visit(names.append)
        found: list[str] = []
        one.visit(found.append)
        assert found == names
        for name in ["/", *names]:
            a, b = (
                {k: v for k, v in file[name].attrs.items() if k not in ("created", "versions_json")}
                for file in (one, other)
            )
            assert a == b, name
            if isinstance(other[name], h5py.Dataset):
                assert one[name][...].tobytes() == other[name][...].tobytes(), name


class TestLaws:
    @settings(max_examples=40)
    @given(
        m=sizes | st.none(),
        n=sizes,
        rows=sizes,
        columns=sizes,
        dtype=st.sampled_from(["float32", "float64"]),
        optional=st.booleans(),
    )
    def test_write_then_read_is_identity(self, tmp_path_factory, m, n, rows, columns, dtype, optional):
        path = tmp_path_factory.mktemp("store") / "influence.h5"
        arguments = stores.layout(m, n, (rows, columns), dtype=dtype, train=stores.examples(n, 2, optional=optional))
        with Store.create_or_resume(path, **arguments) as store:
            stores.write(store)
            store.finish()
        with open_store(path) as store:
            scores = store.scores()
            main = "train" if m is None else "queries"
            expected = {side: stores.matrix(store, "", side) for side in {main, "train"}}
            assert scores.matrix.dtype == dtype
            np.testing.assert_array_equal(scores.matrix[:], expected[main])
            on_train = scores if m is None else scores.on_train
            np.testing.assert_array_equal(on_train.matrix[:], expected["train"])
            assert on_train.on_itself
            assert scores.on_itself == (m is None)
            stores.same_examples(scores.train, arguments["train"])
            stores.same_examples(scores.queries, arguments["train"] if m is None else arguments["queries"])
            assert scores.spectrum.to_dict() == stores.SPECTRUM.to_dict()
            np.testing.assert_array_equal(scores.spectrum.eigenvalues, stores.SPECTRUM.eigenvalues)
            assert scores.meta.items() >= {**stores.ATTRIBUTES, **arguments["attributes"]}.items()

    @settings(max_examples=20)
    @given(data=st.data(), tile=st.tuples(st.integers(2, 7), st.integers(2, 6)))
    def test_the_order_of_tiles_and_stops_between_them_do_not_matter(self, tmp_path_factory, data, tile):
        folder = tmp_path_factory.mktemp("store")
        arguments = stores.layout(6, 5, tile, variants=[*stores.layout()["variants"], DAMPED])
        with Store.create_or_resume(folder / "straight.h5", **arguments) as store:
            todo = stores.tiles(store)
            stores.write(store, todo)
            store.finish()
        order = data.draw(st.permutations(todo))
        stops = sorted(data.draw(st.lists(st.integers(0, len(todo)), max_size=3)))
        written: list[tuple[str, str, int, int]] = []
        for start, stop in zip([0, *stops], [*stops, len(todo)], strict=True):
            with Store.create_or_resume(folder / "stopped.h5", **arguments) as store:
                assert [one for one in todo if store.sink(one[0]).done(*one[1:])] == [
                    one for one in todo if one in written
                ]
                stores.write(store, order[start:stop])
                stores.write(store, order[start:stop][:1])  # once more: nothing changes
            written += order[start:stop]
        with Store.create_or_resume(folder / "stopped.h5", **arguments) as store:
            store.finish()
        same_matrices(folder / "stopped.h5", of=folder / "straight.h5")


class TestLife:
    def test_a_store_bears_its_name_only_when_it_is_complete(self, path: Path):
        with Store.create_or_resume(path, **stores.layout()) as store:
            assert stores.names(path.parent) == ["influence.h5.lock", "influence.h5.partial"]
            with pytest.raises(
                StoreError, match=re.escape("influence.h5 is not complete: 0 of 15 tiles are done. Run the command")
            ):
                store.finish()
            stores.write(store, stores.tiles(store)[:4])
        assert stores.names(path.parent) == ["influence.h5.partial"]
        with pytest.raises(StoreError, match="4 of 15 tiles"):
            open_store(path)
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store)
            store.finish()
            store.finish()
            assert store.scores().matrix.shape == (7, 5)
        assert stores.names(path.parent) == ["influence.h5"]

    def test_an_error_keeps_what_was_written(self, path: Path):
        with pytest.raises(RuntimeError, match="cut"), Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store, stores.tiles(store)[:4])
            raise RuntimeError("cut")
        with open_store(path, allow_partial=True) as store:
            assert store.contents.tiles == (4, 15)

    def test_a_complete_store_is_returned_and_not_written(self, path: Path):
        stores.complete(path)
        before = path.read_bytes()
        with Store.create_or_resume(
            path, **stores.layout(tile=(1, 5))
        ) as store:  # tiles cut otherwise: of no matter now
            assert all(store.sink().done("queries", i, 0) for i in range(7))
            with pytest.raises(StoreError, match="complete and read-only"):
                stores.write(store, stores.tiles(store)[:1])
            store.finish()
        assert path.read_bytes() == before
        assert stores.names(path.parent) == ["influence.h5"]

    def test_a_complete_store_in_a_locked_folder_is_returned(self, path: Path, monkeypatch):
        stores.complete(path)
        monkeypatch.setattr("upweight.cache.handle.Lock", None)  # nothing may be made beside it
        with Store.create_or_resume(path, **stores.layout()) as store:
            assert store.contents.complete

    def test_scores_of_an_unfinished_store_are_not_given(self, path: Path):
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store, stores.tiles(store)[:4])
            with pytest.raises(StoreError, match="4 of 15 tiles"):
                store.scores()

    def test_a_complete_name_does_not_make_a_file_complete(self, path: Path):
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store, stores.tiles(store)[:4])
        path.with_name("influence.h5.partial").rename(path)
        with pytest.raises(StoreError, match="4 of 15 tiles"):
            open_store(path)
        with pytest.raises(StoreError, match="4 of 15 tiles"):
            Store.create_or_resume(path, **stores.layout())

    def test_the_file_that_all_tiles_are_in_and_the_name_is_not_is_finished(self, path: Path):
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store)
        with pytest.raises(StoreError, match="15 of 15 tiles"):
            open_store(path)
        with Store.create_or_resume(path, **stores.layout()) as store:
            store.finish()
        assert open_scores(path).matrix.shape == (7, 5)

    def test_a_closed_store_says_so(self, path: Path):
        store = Store.create_or_resume(path, **stores.layout())
        sink = store.sink()
        store.close()
        for use in (store.finish, store.scores, store.sink):
            with pytest.raises(StoreError, match="was closed"):
                use()
        with pytest.raises(StoreError, match="was closed"):
            sink.write("queries", slice(0, 3), slice(0, 2), np.zeros((3, 2)), (0, 0))

    def test_an_unknown_variant_is_named_with_those_there_are(self, path: Path):
        stores.complete(path, variants=[VariantLayout(name=""), DAMPED])
        with pytest.raises(StoreError, match="no variant 'other'; it has '', 'damped'"):
            open_scores(path, "other")

    def test_variants_keep_apart_what_is_theirs(self, path: Path):
        stores.complete(path, variants=[*stores.layout()["variants"], DAMPED])
        main, damped = open_scores(path), open_scores(path, "damped")
        assert (main.matrix[0, 0], damped.matrix[0, 0]) == (10_000, 20_000)
        assert main.meta["curvature"]["name"] == "LinearHead"
        assert damped.meta["curvature"] == {"damping": 5e-4}
        assert damped.spectrum is None
        assert damped.on_train is None
        stores.same_examples(main.train, damped.train)

    def test_a_file_may_hold_named_variants_alone(self, path: Path):
        stores.complete(path, variants=[DAMPED])
        assert open_scores(path, "damped").matrix.shape == (7, 5)
        with pytest.raises(StoreError, match="no variant ''; it has 'damped'"):
            open_scores(path)

    def test_an_unknown_type_is_refused(self, path: Path):
        with pytest.raises(UsageError, match="float32, float64, got 'float16'"):
            Store.create_or_resume(path, **stores.layout(dtype="float16"))


OTHERS = {
    "setting": (
        {"config": {"damping": 0.01, "k": 1, "curvature": {"name": "linear-head"}}},
        "damping=0.0;.*damping=0.01",
    ),
    "nested": (
        {"config": {"damping": 0.0, "k": 1, "curvature": {"name": "hessian"}}},
        r"curvature\.name=linear-head;.*=hessian",
    ),
    "hash": ({"attributes": {"hashes": {"model": "m" * 8, "data": "e" * 8}}}, r"hashes\.data=dddddddd;.*=eeeeeeee"),
    "type": ({"dtype": "float64"}, "dtype=float32;.*dtype=float64"),
    "train": ({"train": stores.examples(5, seed=3)}, "train index="),
    "queries": ({"queries": None}, r"queries index=[0-9a-f]{64}, .*\(not set\)"),
    "variants": ({"variants": [VariantLayout(name=""), DAMPED]}, r"variants\.damped=\(not set\), .*variants\.main="),
}


class TestMismatch:
    @pytest.mark.parametrize("finished", [True, False], ids=["complete", "partial"])
    @pytest.mark.parametrize("other", OTHERS)
    def test_other_results_are_refused_and_kept(self, path: Path, other: str, finished: bool):
        changes, shown = OTHERS[other]
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store)
            if finished:
                store.finish()
        (held,) = path.parent.iterdir()
        before = held.read_bytes()
        with pytest.raises(StoreMismatch, match=shown) as refused:
            Store.create_or_resume(path, **stores.layout(**changes))
        assert str(held) in str(refused.value)
        assert "--overwrite" in str(refused.value)
        assert "--out DIR" in str(refused.value)
        assert list(path.parent.iterdir()) == [held]
        assert held.read_bytes() == before

    def test_an_unfinished_file_cut_into_other_tiles_is_refused(self, path: Path):
        Store.create_or_resume(path, **stores.layout(tile=(3, 2))).close()
        with pytest.raises(StoreMismatch, match=r"tiles\.rows_per_tile=3; .*tiles\.rows_per_tile=4"):
            Store.create_or_resume(path, **stores.layout(tile=(4, 2)))

    def test_many_differences_are_counted(self, path: Path):
        stores.complete(path, config={f"s{i}": 0 for i in range(9)})
        with pytest.raises(StoreMismatch, match=r"s0=0, s1=0, s2=0, s3=0 and 5 more; .* s3=1 and 5 more\."):
            Store.create_or_resume(path, **stores.layout(config={f"s{i}": 1 for i in range(9)}))

    def test_what_cannot_change_a_score_is_no_mismatch(self, path: Path):
        stores.complete(path, config={"damping": 0, "k": 1})
        changes = {
            "config": {"k": 1.0, "damping": 0.0},
            "attributes": {"hashes": stores.layout()["attributes"]["hashes"], "note": "x"},
        }
        with Store.create_or_resume(path, **stores.layout(**changes)) as store:
            assert store.contents.complete


class TestOverwrite:
    def test_the_old_file_stays_until_the_new_one_is_complete(self, path: Path):
        stores.complete(path)
        before = path.read_bytes()
        changes = {"config": {"damping": 1.0}, "overwrite": True}
        with Store.create_or_resume(path, **stores.layout(**changes)) as store:
            stores.write(store, stores.tiles(store)[:4])
        assert path.read_bytes() == before
        with open_store(path) as store:
            assert store.contents.config == stores.layout()["config"]
        with Store.create_or_resume(path, **stores.layout(**changes)) as store:
            assert store.contents.tiles == (4, 15)  # its own beginning is continued
            stores.write(store)
            store.finish()
        assert stores.names(path.parent) == ["influence.h5"]
        with open_store(path) as store:
            assert store.contents.config == {"damping": 1.0}

    def test_an_unfinished_file_of_other_settings_is_replaced(self, path: Path):
        with Store.create_or_resume(path, **stores.layout()) as store:
            stores.write(store)
        with Store.create_or_resume(path, **stores.layout(config={"damping": 1.0}, overwrite=True)) as store:
            assert store.contents.tiles == (0, 15)

    def test_results_of_these_settings_are_kept(self, path: Path):
        stores.complete(path)
        with Store.create_or_resume(path, **stores.layout(overwrite=True)) as store:
            assert store.contents.complete

    @pytest.mark.parametrize("name", ["influence.h5", "influence.h5.partial"])
    def test_a_damaged_file_is_refused_and_replaced_when_asked(self, path: Path, name: str):
        content = stores.complete(path).read_bytes()
        path.unlink()
        damaged = path.with_name(name)
        damaged.write_bytes(content[:-100])
        with pytest.raises(StoreError, match=f"{re.escape(str(damaged))} is truncated.*--overwrite"):
            Store.create_or_resume(path, **stores.layout())
        assert damaged.read_bytes() == content[:-100]
        with Store.create_or_resume(path, **stores.layout(overwrite=True)) as store:
            stores.write(store)
            store.finish()
        assert open_scores(path).matrix.shape == (7, 5)

    def test_files_of_others_are_never_replaced(self, path: Path):
        path.parent.mkdir()
        path.write_bytes(b"a thesis")
        with pytest.raises(ForeignFile, match=r"not an HDF5 file.*one that is free"):
            Store.create_or_resume(path, **stores.layout(overwrite=True))
        assert path.read_bytes() == b"a thesis"
        path.unlink()
        with h5py.File(path, "w") as file:
            file["weights"] = np.zeros(3)
        with pytest.raises(ForeignFile, match="another program"):
            Store.create_or_resume(path, **stores.layout(overwrite=True))
        assert stores.names(path.parent) == ["influence.h5"]
