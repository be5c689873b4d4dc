"""Ground truth on disk: written in any order, killed, grown, refused."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from upweight.cache.errors import ForeignFile, StoreError, StoreMismatch
from upweight.cache.truth import Refits, TruthStore, open_truth

CONFIG = {"kind": "lds", "alpha": 0.5, "seed": 0, "trainer": {"recipe": {"k": 1, "epochs": 3}}}
M = 5


def refits(J=4, r=2, n=11, m=M):
    kept = np.zeros((J, n), dtype=bool)
    for j in range(J):
        kept[j, np.random.default_rng([7, j]).permutation(n)[: n // 2]] = True
    return Refits(
        kept=kept,
        seed=np.arange(100, 100 + J * r).reshape(J, r),
        train_index=np.arange(n) * 3,
        train_label=np.arange(n) % 2,
        query_index=np.arange(m) + 50,
        query_label=np.arange(m) % 2,
    )


def row(seed, sign=1.0):
    """Known numbers of the training with a seed, of which float32 would lose the end."""
    return sign * (seed + np.arange(M) / 7 + 1e-12)


def fill(store, asked, which=None):
    for part, repeat in store.pending if which is None else which:
        seed = asked.seed[part, repeat]
        store.write(part, repeat, row(seed), row(seed, -1.0))


def complete(path, asked=None, config=CONFIG, **more):
    asked = refits() if asked is None else asked
    with TruthStore.create_or_resume(path, asked, config, **more) as store:
        fill(store, asked)
        store.finish()
        return store.truth()


def holds(truth, asked):
    np.testing.assert_array_equal(truth.kept, asked.kept)
    np.testing.assert_array_equal(truth.seed, asked.seed)
    for j in range(len(asked.kept)):
        for a in range(asked.seed.shape[1]):
            np.testing.assert_array_equal(truth.loss[j, a], row(asked.seed[j, a]))
            np.testing.assert_array_equal(truth.margin[j, a], row(asked.seed[j, a], -1.0))


def test_what_was_written_is_read_to_the_last_bit(tmp_path):
    path, asked = tmp_path / "a" / "truth.h5", refits()
    first = complete(path, asked)
    for truth in (first, open_truth(path)):
        holds(truth, asked)
        assert truth.train_index.tolist() == asked.train_index.tolist()
        assert truth.query_index.tolist() == asked.query_index.tolist()
        assert truth.meta["kind"] == "lds" and truth.meta["trainer"] == CONFIG["trainer"]
        assert truth.meta["unit"] == "nats" and "margin = logit" in truth.meta["sign"]
        assert truth.meta["versions"]["h5py"] == h5py.__version__ and len(truth.meta["config_digest"]) == 64
    assert os.listdir(path.parent) == ["truth.h5"]


def test_what_lies_where_is_what_the_format_says(tmp_path):
    path, asked = tmp_path / "truth.h5", refits()
    complete(path, asked)
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"upweight-truth" and file.attrs["version"] == b"1.0"
        assert file["loss"].shape == (8, M) and file["loss"].dtype == np.float64
        np.testing.assert_array_equal(file["margin"][5], row(105, -1.0))  # part 2, repeat 1
        np.testing.assert_array_equal(np.unpackbits(file["kept"][...], axis=1)[:, :11].astype(bool), asked.kept)
        assert file["state"][...].tolist() == [[1, 1]] * 4
        assert file["queries/label"][...].tolist() == asked.query_label.tolist()


def test_it_goes_on_where_it_was_stopped(tmp_path):
    path, asked = tmp_path / "truth.h5", refits()
    with TruthStore.create_or_resume(path, asked, CONFIG) as store:
        assert len(store.pending) == 8
        fill(store, asked, [(3, 1), (0, 0), (2, 0)])
    assert os.listdir(tmp_path) == ["truth.h5.partial"]
    with pytest.raises(StoreError, match="3 of 8 refits are done"):
        open_truth(path)
    with TruthStore.create_or_resume(path, asked, CONFIG) as store:
        assert store.pending == [(0, 1), (1, 0), (1, 1), (2, 1), (3, 0)]
        with pytest.raises(StoreError, match="3 of 8 refits"):
            store.finish()
        with pytest.raises(StoreError, match="3 of 8 refits"):
            store.truth()
        fill(store, asked)
        store.finish()
        holds(store.truth(), asked)
    with TruthStore.create_or_resume(path, asked, CONFIG) as store:
        assert store.pending == []
        with pytest.raises(StoreError, match="read-only"):
            store.write(0, 0, row(1), row(1))


def test_more_parts_take_over_those_that_are_there_and_fewer_leave_them(tmp_path):
    path = tmp_path / "truth.h5"
    few, more = refits(3), refits(6)
    complete(path, few)
    with TruthStore.create_or_resume(path, more, CONFIG) as store:
        assert store.pending == [(j, a) for j in (3, 4, 5) for a in (0, 1)]
        assert path.exists(), "the smaller one stays until the larger one is complete"
        fill(store, more)
        store.finish()
        holds(store.truth(), more)
    holds(complete(path, few), few)
    holds(open_truth(path), more)
    other = replace(more, kept=more.kept[::-1][:2].copy(), seed=more.seed[::-1][:2].copy())
    holds(complete(path, other), other)


def test_parts_begun_and_no_longer_asked_for_are_dropped_and_done_ones_stay(tmp_path):
    path, more, few = tmp_path / "truth.h5", refits(6), refits(2)
    with TruthStore.create_or_resume(path, more, CONFIG) as store:
        fill(store, more, [(0, 0), (4, 0), (4, 1), (5, 0)])
    with TruthStore.create_or_resume(path, few, CONFIG) as store:
        assert store.pending == [(0, 1), (1, 0), (1, 1)]
        fill(store, few)
        store.finish()
        holds(store.truth(), few)
    everything = open_truth(path)
    holds(everything, replace(more, kept=more.kept[[0, 1, 4]], seed=more.seed[[0, 1, 4]]))


def test_a_diverged_refit_is_kept_as_such(tmp_path):
    path, asked = tmp_path / "truth.h5", refits(2)
    with TruthStore.create_or_resume(path, asked, CONFIG) as store:
        store.write(1, 0, None, None, diverged=True)
        fill(store, asked)
        store.finish()
    truth = open_truth(path)
    assert truth.diverged.tolist() == [[False, False], [True, False]]
    np.testing.assert_array_equal(truth.mean("loss")[1], row(asked.seed[1, 1]))


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"config": CONFIG | {"alpha": 0.4}}, r"alpha=0.5; this run asks for alpha=0.4"),
        ({"config": CONFIG | {"trainer": {"recipe": {"k": 1, "epochs": 4}}}}, r"epochs=3.*epochs=4"),
        ({"examples": {"train_label": np.zeros(11, dtype=np.int64)}}, "train label="),
        ({"examples": {"query_index": np.arange(M)}}, "query index="),
        ({"repeats": 1}, r"repeats=2; this run asks for repeats=1"),
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_truth_of_another_run_is_refused_with_both_shown(tmp_path, change, shown, stopped):
    path = tmp_path / "truth.h5"
    if stopped:
        TruthStore.create_or_resume(path, refits(), CONFIG).close()
    else:
        complete(path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    asked = replace(refits(r=change.get("repeats", 2)), **change.get("examples", {}))
    with pytest.raises(StoreMismatch, match=shown):
        TruthStore.create_or_resume(path, asked, change.get("config", CONFIG))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    complete(path, asked, change.get("config", CONFIG), overwrite=True)


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "truth.h5"
    first = TruthStore.create_or_resume(path, refits(), CONFIG)
    with first, pytest.raises(StoreError, match="is being written by another process"):
        TruthStore.create_or_resume(path, refits(), CONFIG)
    complete(path)


def _rewrite(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def _of_another_program(file):
    file.attrs["format"] = np.bytes_("notes")


def _from_the_future(file):
    file.attrs["version"] = np.bytes_("2.0")


def _state(file):
    file["state"][0, 0] = 9


def _half_done(file):
    file["loss"][3, 2] = np.nan


def _shape(file):
    del file["margin"]
    file["margin"] = np.zeros((8, M + 1))


def _kind(file):
    del file["seed"]
    file["seed"] = np.zeros((4, 2))


def _link(file):
    del file["loss"]
    file["loss"] = h5py.ExternalLink("other.h5", "/loss")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_of_another_program, ForeignFile, "another program"),
        (_from_the_future, StoreError, "Install a newer upweight"),
        (_state, StoreError, "state holds other values"),
        (_half_done, StoreError, "a refit that is done has no loss"),
        (_shape, StoreError, "margin has shape"),
        (_kind, StoreError, "seed is float64"),
        (_link, StoreError, "link /loss"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, change, error, words):
    path = tmp_path / "truth.h5"
    complete(path)
    _rewrite(path, change)
    with pytest.raises(error, match=words):
        open_truth(path)


def test_cut_off_or_missing_it_is_refused_and_a_store_is_no_truth(tmp_path):
    import stores

    path = tmp_path / "truth.h5"
    with pytest.raises(StoreError, match="no file"):
        open_truth(path)
    complete(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StoreError, match="truncated"):
        open_truth(path)
    with pytest.raises(ForeignFile, match="upweight-truth"):
        open_truth(stores.complete(tmp_path / "scores.h5"))
    complete(path, overwrite=True)
    scores = tmp_path / "scores.h5"
    with pytest.raises(ForeignFile):
        complete(scores, overwrite=True)


WRITER = """
import sys, numpy as np
sys.path[:0] = [{here!r}]
from test_truth import CONFIG, TruthStore, refits, row
asked = refits(40)
with TruthStore.create_or_resume({path!r}, asked, CONFIG) as store:
    for part, repeat in store.pending:
        store.write(part, repeat, row(asked.seed[part, repeat]), row(asked.seed[part, repeat], -1.0))
        print(len(store.pending), flush=True)
    store.finish()
"""


def test_killed_it_has_lost_nothing_that_was_told(tmp_path):
    path, asked = tmp_path / "truth.h5", refits(40)
    code = WRITER.format(here=os.path.dirname(__file__), path=str(path))
    for stop in (70, 30):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if int(line) <= stop:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        with TruthStore.create_or_resume(path, asked, CONFIG) as store:
            assert len(store.pending) <= stop
    holds(complete(path, asked), asked)
