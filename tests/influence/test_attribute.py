"""Tiles, progress, what is reported about the model, and scores that go to a store and come back."""

import json

import numpy as np
import pytest
import reference
import torch
import upweight
from cases import BY_NAME
from methods import assert_scores, parts
from numpy.testing import assert_allclose, assert_array_equal
from upweight import GradientDot, Hessian, LinearHead, StoreError, StoreMismatch, attribute

ROUNDING = 1e-9
"""Two runs of one computation, in float64: sums may run in another order when memory lies otherwise."""
SMALL = (3, 5)
"""Rows and columns of a tile in these tests: 7 queries x 40 train examples make 3 x 8 tiles, the last ones cut."""


@pytest.fixture
def problem():
    return BY_NAME["head"].build()


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr("upweight.influence.walk.tile_shape", lambda prepared: SMALL)


def score(problem, **options):
    return attribute(problem.model, problem.train, problem.queries, parameters=problem.parameters, **options)


class Stop(Exception):
    """A run that is interrupted, as by Ctrl-C."""


class Recorder:
    """What progress was told; raises `Stop` when a stage has that much done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.stop_at = stop_at

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))
        if self.stop_at is not None and sum(s.startswith("score") for s, _, _ in self.calls) == self.stop_at:
            raise Stop

    def scored(self) -> list[tuple[int, int]]:
        return [(done, total) for stage, done, total in self.calls if stage == "score queries"]


@pytest.mark.parametrize("curvature", [LinearHead(), Hessian(), GradientDot(), GradientDot(cosine=True)], ids=repr)
def test_tiles_change_nothing(problem, curvature, monkeypatch):
    whole = score(problem, curvature=curvature, train_scores=True)
    monkeypatch.setattr("upweight.influence.walk.tile_shape", lambda prepared: SMALL)
    tiled = score(problem, curvature=curvature, train_scores=True)
    assert_scores(tiled.matrix, whole.matrix, ROUNDING)
    assert_scores(tiled.on_train.matrix, whole.on_train.matrix, ROUNDING)


class TestProgress:
    def test_every_stage_counts_up_to_its_total(self, problem, small_tiles):
        record = Recorder()
        score(problem, progress=record, train_scores=True)
        stages = {}
        for stage, done, total in record.calls:
            assert isinstance(stage, str) and 0 <= done <= total
            assert stages.get(stage, (0, total))[0] <= done and stages.get(stage, (0, total))[1] == total
            stages[stage] = (done, total)
        assert all(done == total for done, total in stages.values())
        assert stages["score queries"] == (24, 24) and stages["score train"] == (14 * 8, 14 * 8)

    def test_true_writes_nothing_to_stdout(self, problem, capsys):
        score(problem, progress=True)
        assert capsys.readouterr().out == ""

    def test_an_exception_in_it_comes_through_and_leaves_the_model_alone(self, problem):
        with pytest.raises(Stop):
            score(problem, progress=Recorder(stop_at=1))
        assert problem.model.training


class TestReported:
    """Facts about the model that decide how much a first-order score means."""

    def test_fitted_model_with_its_penalty_is_stationary(self):
        problem = BY_NAME["fitted"].build()
        meta = score(problem, weight_decay=problem.weight_decay).meta
        assert meta["mean_gradient"] < 1e-10
        assert meta["warnings"] == []

    @pytest.mark.parametrize(("name", "weight_decay"), [("fitted", None), ("head", None), ("mlp", 0.3)])
    def test_slope_is_that_of_the_loops(self, name, weight_decay):
        problem = BY_NAME[name].build()
        net = reference.Network(problem)
        G = reference.gradients(problem, *problem.train)
        slope = G.mean(0) + (weight_decay or 0.0) * net.theta.numpy()
        expected = np.linalg.norm(slope) / np.linalg.norm(G, axis=1).mean()
        meta = score(problem, weight_decay=weight_decay, curvature=GradientDot()).meta
        assert meta["mean_gradient"] == pytest.approx(expected, rel=1e-9)
        assert any("slope" in warning for warning in meta["warnings"]) == (expected > 0.1)

    def test_weight_decay_is_never_added_silently(self, problem):
        assert_scores(score(problem, weight_decay=0.5).matrix, score(problem).matrix, ROUNDING)

    def test_absent_class_is_named(self):
        meta = score(BY_NAME["absent-class"].build()).meta
        assert meta["absent_classes"] == [2]
        assert any("class 2" in warning for warning in meta["warnings"])
        assert score(BY_NAME["head"].build()).meta["absent_classes"] == []

    def test_meta_is_ready_for_json(self, problem):
        for curvature in (LinearHead(damping=1e-3), Hessian(absolute=1e-9), GradientDot(cosine=True)):
            meta = score(problem, curvature=curvature).meta
            assert json.loads(json.dumps(meta)) == meta

    def test_meta_counts(self, problem):
        meta = score(problem).meta
        assert (meta["n"], meta["p"], meta["num_classes"]) == (40, 28, 4)
        assert meta["parameters"] == ["2.weight", "2.bias"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "influence.h5"


def same(a, b, rtol=0.0):
    """Everything that a `Scores` object holds, equal; scores of two runs may differ in rounding, those of one file not."""
    assert a.matrix.dtype == b.matrix.dtype
    assert_scores(a.matrix[:], np.asarray(b.matrix[:]), rtol)
    assert a.on_itself == b.on_itself and (a.on_train is None) == (b.on_train is None)
    for side in ("queries", "train"):
        for name in ("index", "label", "prediction", "loss", "residual", "features"):
            assert_allclose(getattr(getattr(a, side), name), getattr(getattr(b, side), name), rtol=rtol, err_msg=name)
    for name in ("curvature", "query_label", "unit", "sign", "weight_decay", "parameters", "warnings"):
        assert a.meta[name] == b.meta[name], name
    if a.spectrum is None:
        assert b.spectrum is None
    else:
        facts, wanted = a.spectrum.to_dict(), b.spectrum.to_dict()
        assert facts.pop("sensitivity") == wanted.pop("sensitivity")
        assert facts == pytest.approx(wanted, rel=1e3 * rtol, abs=1e-15)
        assert_allclose(a.spectrum.eigenvalues, b.spectrum.eigenvalues, rtol=0, atol=rtol * facts["lambda_max"])
    for query in (0, 3):
        assert_array_equal(a.top(query)["train_id"], b.top(query)["train_id"])
    assert_array_equal(a.class_match(5)["rate"], b.class_match(5)["rate"])
    if a.on_train is not None:
        same(a.on_train, b.on_train, rtol)


@pytest.mark.parametrize(
    ("name", "curvature", "options"),
    [
        ("head", LinearHead(), {"train_scores": True, "weight_decay": 1e-3}),
        ("head", LinearHead(damping=1e-2), {"query_label": "predicted"}),
        ("mlp", Hessian(), {"train_scores": True}),
        ("conv", GradientDot(cosine=True), {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_store_holds_what_memory_holds(name, curvature, options, dtype, path):
    in_memory = score(BY_NAME[name].build(dtype=dtype), curvature=curvature, **options)
    stored = score(BY_NAME[name].build(dtype=dtype), curvature=curvature, out=path, **options)
    same(stored, in_memory, 1e-5 if dtype == torch.float32 else ROUNDING)
    same(upweight.open_scores(path), stored)
    assert [file.name for file in path.parent.iterdir()] == ["influence.h5"]  # nothing half-made is left


def test_train_set_on_itself_in_a_store(problem, path):
    in_memory = attribute(problem.model, problem.train)
    stored = attribute(problem.model, problem.train, out=path)
    assert stored.on_itself and upweight.open_scores(path).on_itself
    same(stored, in_memory, ROUNDING)
    same(upweight.open_scores(path), stored)
    assert_array_equal(upweight.open_scores(path).self_influence(), np.diag(stored.matrix[:]))


def test_saved_scores_open_again(problem, path):
    in_memory = score(problem, train_scores=True)
    in_memory.save(path)
    same(upweight.open_scores(path), in_memory)


@pytest.mark.parametrize("stop_at", [1, 11, 24, 136])
def test_stopped_and_resumed_is_one_run(problem, path, small_tiles, stop_at):
    """Stopped after any tile, the first or the last of either matrix; the rest is computed once, nothing twice."""
    whole = score(problem, train_scores=True)
    with pytest.raises(Stop):
        score(problem, train_scores=True, out=path, progress=Recorder(stop_at))
    assert not path.exists()
    with pytest.raises(StoreError):
        upweight.open_scores(path)

    written = []
    from upweight.influence.head import LinearHead as Head

    original = Head.scores

    def counted(self, state, solved, train, columns):
        if columns.stop - columns.start <= SMALL[1]:  # not the look at neighbours, which takes all columns at once
            written.append(columns)
        return original(self, state, solved, train, columns)

    record = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Head, "scores", counted)
        resumed = score(problem, train_scores=True, out=path, progress=record)
    assert len(written) == 24 + 14 * 8 - stop_at
    assert record.scored() == [(done + 1, 24) for done in range(24)]  # tiles that were there count as done
    same(resumed, whole, ROUNDING)


def test_twice_stopped_is_one_run_too(problem, path, small_tiles):
    for stop_at in (5, 9):  # the second run meets the five tiles of the first, and adds four
        with pytest.raises(Stop):
            score(problem, out=path, progress=Recorder(stop_at))
    same(score(problem, out=path), score(problem), ROUNDING)


def test_finished_run_is_read_and_not_done_again(problem, path):
    first = score(problem, out=path)
    before = path.read_bytes()
    record = Recorder()
    again = score(problem, out=path, progress=record)
    same(again, first)
    assert not any(stage == "curvature" for stage, _, _ in record.calls)  # the dear step is not taken for nothing
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"curvature": LinearHead(damping=1e-3)},
        {"curvature": LinearHead(rcond=1e-3)},
        {"curvature": Hessian()},
        {"query_label": "predicted"},
        {"train_scores": True},
        {"dtype": torch.float32},
        {"weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "stopped"])
def test_results_of_other_settings_are_refused_and_kept(problem, path, small_tiles, change, finished):
    if finished:
        score(problem, out=path)
    else:
        with pytest.raises(Stop):
            score(problem, out=path, progress=Recorder(stop_at=3))
    (file,) = (found for found in path.parent.iterdir() if found.name.startswith("influence.h5"))
    before = file.read_bytes()
    with pytest.raises(StoreMismatch, match=r"influence\.h5"):
        score(problem, out=path, **change)
    assert file.read_bytes() == before


def test_other_settings_are_refused_before_the_dear_step(problem, path):
    score(problem, out=path)
    record = Recorder()
    with pytest.raises(StoreMismatch):
        score(problem, out=path, curvature=Hessian(damping=1.0), progress=record)
    assert not any(stage == "curvature" for stage, _, _ in record.calls)


@pytest.mark.parametrize("what", ["weights", "body", "inputs", "labels", "queries"])
def test_results_of_another_model_or_data_are_refused(problem, path, what):
    score(problem, out=path)
    train, queries = problem.train, problem.queries
    with torch.no_grad():
        if what == "weights":
            problem.model[2].bias[0] += 1e-3
        elif what == "body":
            problem.model[0].bias[0] += 1e-3
        elif what == "inputs":
            train = (train[0] + 1e-3, train[1])
        elif what == "labels":
            train = (train[0], train[1].flip(0))
        else:
            queries = (queries[0][:-1], queries[1][:-1])
    with pytest.raises(StoreMismatch):
        attribute(problem.model, train, queries, out=path)


def test_file_that_is_no_store_is_kept(problem, path):
    path.write_text("dear diary")
    with pytest.raises(StoreError, match=r"influence\.h5"):
        score(problem, out=path)
    assert path.read_text() == "dear diary"
    with pytest.raises(StoreError, match=r"influence\.h5"):
        upweight.open_scores(path)


def test_scores_of_a_store_are_held_to_the_loops(path):
    """Not only equal to memory: the numbers themselves, read back from disk."""
    ask = parts(BY_NAME["head"])
    score(ask.problem, out=path)
    assert_scores(upweight.open_scores(path).matrix[:], ask.through(reference.inverse(ask.ggn)), 1e-8)
