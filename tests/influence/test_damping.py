"""A list of dampings: each gives what a run with it alone gives, and what the loops give, in memory and in a store."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import upweight
from cases import BY_NAME
from methods import assert_scores, parts
from upweight import GaussNewton, GradientDot, Hessian, LinearHead, StoreMismatch, UsageError
from upweight.influence.damping import damping_of, variant_name

HEAD = (1e-3, 0.0, 0.1)
LISTS = {
    "LinearHead": ("head", LinearHead(damping=HEAD)),
    "GaussNewton-head": ("head", GaussNewton(damping=[1e-3, "auto", 0.1])),
    "GaussNewton-dual": ("mlp", GaussNewton(damping=["auto", 1e-3, 0.1], form="dual")),
    "GaussNewton-primal": ("mlp", GaussNewton(damping=[1e-2, 0.1], form="primal")),
    "GaussNewton-leave-one-out": ("mlp", GaussNewton(damping=[0.1, "auto"], leave_one_out=True)),
    "LinearHead-leave-one-out": ("head", LinearHead(damping=[0.1, 0.2], leave_one_out=True)),
    "Hessian": ("mlp", Hessian(damping=[1.0, 3.0])),
}
every_list = pytest.mark.parametrize(("case", "curvature"), LISTS.values(), ids=LISTS)


def score(case, curvature, **options):
    problem = BY_NAME[case].build()
    return upweight.attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


@every_list
def test_each_damping_is_a_run_of_its_own(case, curvature, tmp_path):
    scores = score(case, curvature, train_scores=True)
    stored = score(case, curvature, train_scores=True, out=tmp_path / "influence.h5")
    read = upweight.open_scores(tmp_path / "influence.h5")
    assert list(scores.at_damping) == list(curvature.damping)
    assert scores.at_damping[curvature.damping[0]] is scores
    for damping in curvature.damping:
        alone = score(case, replace(curvature, damping=damping), train_scores=True)
        assert list(alone.at_damping.items()) == [(damping, alone)]
        for held in (scores, stored, read):
            assert set(held.at_damping) == set(curvature.damping)
            one = held.at_damping[damping]
            assert_scores(one.matrix[:], alone.matrix, 1e-9)
            assert_scores(one.on_train.matrix[:], alone.on_train.matrix, 1e-9)
            assert one.meta["curvature"] == alone.meta["curvature"]  # with its own damping, not the list
            assert one.spectrum.damping == pytest.approx(alone.spectrum.damping)
            assert one.spectrum.sensitivity == alone.spectrum.sensitivity


@every_list
def test_each_damping_is_that_of_the_loops(case, curvature):
    ask = parts(BY_NAME[case])
    H = ask.hessian if isinstance(curvature, Hessian) else ask.ggn
    for damping, scores in score(case, curvature).at_damping.items():
        lam = np.linalg.eigvalsh(H)[-1] / 1000 if damping == "auto" else damping
        if getattr(curvature, "leave_one_out", False):
            want = reference.leave_one_out_scores(ask.G_query, ask.kinds["logits"], ask.G_train, lam)
        else:
            want = ask.through(reference.inverse(H, damping=lam))
        assert_scores(scores.matrix, want, 1e-8)


def test_train_set_on_itself(tmp_path):
    problem = BY_NAME["head"].build()
    options = {"curvature": LinearHead(damping=HEAD), "out": tmp_path / "influence.h5"}
    stored = upweight.attribute(problem.model, problem.train, **options)
    for damping in HEAD:
        alone = upweight.attribute(problem.model, problem.train, curvature=LinearHead(damping=damping))
        assert stored.at_damping[damping].on_itself
        assert_scores(stored.at_damping[damping].matrix[:], alone.matrix, 1e-9)


def test_a_method_without_damping_has_none():
    assert score("head", GradientDot()).at_damping == {}


def test_saved_scores_keep_every_damping(tmp_path):
    scores = score("head", LinearHead(damping=HEAD))
    scores.save(tmp_path / "a.h5")
    read = upweight.open_scores(tmp_path / "a.h5")
    assert list(read.at_damping) == [1e-3, 0.0, 0.1]  # the main ones, then ascending
    for damping, one in scores.at_damping.items():
        np.testing.assert_array_equal(read.at_damping[damping].matrix[:], one.matrix)
        assert read.at_damping[damping].meta["curvature"]["damping"] == damping
    scores.save(tmp_path / "a.h5")  # these very scores
    with pytest.raises(StoreMismatch):
        score("head", LinearHead(damping=(1e-3, 0.1))).save(tmp_path / "a.h5")


def test_stores_of_other_lists_are_refused(tmp_path):
    score("head", LinearHead(damping=HEAD), out=tmp_path / "a.h5")
    with pytest.raises(StoreMismatch, match="--overwrite"):
        score("head", LinearHead(damping=HEAD[:2]), out=tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GaussNewton(damping=[0.1, 0.1]), "names 0.1 twice"),
        (lambda: GaussNewton(damping=["auto", 0.1, "auto"]), "names auto twice"),
        (lambda: LinearHead(damping=[0, 0.0]), "names 0.0 twice"),
        (lambda: LinearHead(damping=[1e-3, -1e-3]), r"finite number >= 0, got -0\.001"),
        (lambda: Hessian(damping=[1.0, float("nan")]), "finite number >= 0, got nan"),
        (lambda: GaussNewton(damping=[1.0, float("inf")]), "finite number >= 0, got inf"),
        (lambda: LinearHead(damping=[]), "empty list"),
        (lambda: Hessian(damping="auto"), "must be a number, got 'auto'.*no rule 'auto'"),
        (lambda: GaussNewton(damping=[0.1, "much"]), "must be a number or 'auto', got 'much'"),
        (lambda: GaussNewton(damping="0.1"), "must be a number or 'auto', got '0.1'"),
        (lambda: LinearHead(damping=[None]), "must be a number or 'auto', got None"),
        (lambda: GaussNewton(damping=[0.1, 0.0], leave_one_out=True), "needs damping > 0"),
    ],
)
@pytest.mark.untyped
def test_bad_lists(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()


@pytest.mark.untyped
def test_arrays_are_lists_too():
    assert LinearHead(damping=np.logspace(-3, -1, 3)) == LinearHead(damping=[1e-3, 1e-2, 1e-1])
    assert LinearHead(damping=np.float64(0.5)) == LinearHead(damping=0.5)


def test_a_list_of_one_is_a_single_damping():
    assert LinearHead(damping=[0.5]) == LinearHead(damping=0.5)
    assert score("head", LinearHead(damping=[0.5])).meta["curvature"] == LinearHead(damping=0.5).settings()


def test_a_list_is_not_fitted_itself():
    problem = parts(BY_NAME["head"]).problem
    for curvature in (LinearHead(damping=HEAD), Hessian(damping=HEAD)):
        with pytest.raises(UsageError, match="has 3 dampings"):
            curvature.fit(side_of(problem))


def side_of(problem):
    from upweight.influence.attribute import prepare
    from upweight.influence.problem import evaluating
    from upweight.scoring import resolve

    names, head = resolve(problem.model, problem.parameters)
    with evaluating(problem.model):
        prepared = prepare(
            problem.model,
            problem.train,
            None,
            parameters=names,
            head=head,
            loss=None,
            dtype=None,
            device=torch.device("cpu"),
            batch_size=256,
            weight_decay=None,
        )
    return prepared.train


@pytest.mark.parametrize("damping", [0.01, 1e-3, 0.0, 1e20, 1 / 300, 0.1 + 0.2, 5e-324, "auto"])
def test_a_name_gives_its_damping_back(damping):
    assert damping_of(variant_name(damping)) == damping


def test_names():
    assert [variant_name(d) for d in (0.01, 1e-3, 1e-7, "auto")] == [
        "damping=0.01",
        "damping=0.001",
        "damping=1e-07",
        "damping=auto",
    ]
    assert [damping_of(name) for name in ("damping=1e-2", "damped", "damping=much", "")] == [0.01, None, None, None]


class Watched(LinearHead):
    """Remembers what it was asked to solve."""

    asked = ()

    def solve(self, state, queries, rows):
        Watched.asked += ((id(queries), rows.start, rows.stop, self.damping),)
        return super().solve(state, queries, rows)


def test_a_block_of_queries_is_solved_at_every_damping_before_the_next(monkeypatch):
    """So that what it shares with the other dampings is still there."""
    monkeypatch.setattr("upweight.influence.walk.tile_shape", lambda p: (3, 5))
    monkeypatch.setattr("upweight.influence.attribute.sensitivity", lambda *_: {})
    monkeypatch.setattr(Watched, "asked", ())  # of the class, as the list is expanded into new objects
    score("head", Watched(damping=HEAD))
    assert [entry[1:] for entry in Watched.asked] == [
        (*rows, damping) for rows in ((0, 3), (3, 6), (6, 7)) for damping in HEAD
    ]
    assert len({entry[0] for entry in Watched.asked}) == 1  # one side, by which shared work is looked up


def test_the_curvature_is_formed_once(monkeypatch):
    from upweight.influence import hessian

    formed, real = [], hessian.assemble_hessian
    monkeypatch.setattr(hessian, "assemble_hessian", lambda *args: formed.append(args) or real(*args))
    score("mlp", Hessian(damping=[1.0, 2.0, 3.0]))
    assert len(formed) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_rows_are_multiplied_once(monkeypatch, form, dtype):
    """Whatever is asked for first: the matrix of the undamped scores serves the damped ones too."""
    from upweight.influence import gauss_newton, newton

    monkeypatch.setattr("upweight.influence.attribute.sensitivity", lambda *_: {})
    calls = []

    def counted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **options: calls.append(name) or real(*args, **options))

    counted(gauss_newton, "newton_matrix")
    counted(newton, "cross_gram" if form == "dual" else "full_rows")
    monkeypatch.setattr("upweight.influence.walk.tile_shape", lambda p: (3, 5))
    problem = BY_NAME["mlp"].build(dtype=dtype)
    upweight.attribute(
        problem.model,
        *(problem.train, problem.queries),
        parameters=problem.parameters,
        curvature=GaussNewton(damping=[0.1, "auto", 0.0], form=form),
    )
    blocks = [name for name in calls if name != "newton_matrix"]
    assert (len(calls) - len(blocks), len(blocks)) == (1, -(-len(problem.queries[0]) // 3))  # three at a time


SCORE = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import upweight
import upweight.influence.walk
from cases import BY_NAME
upweight.influence.walk.tile_shape = lambda p: (3, 10)
problem = BY_NAME["mlp"].build()
upweight.attribute(
    problem.model, problem.train, problem.queries, parameters=problem.parameters, train_scores=True, out=sys.argv[1],
    curvature=upweight.GaussNewton(damping=[1e-3, "auto", 0.1], form="dual"),
    progress=lambda *what: print(*what, flush=True),
)
"""


def run(path, lines=None):
    """Score in a process of its own, killed after so many tiles: how many it said are there."""
    with subprocess.Popen(
        [sys.executable, "-c", SCORE, str(path), str(Path(__file__).parent.parent)], stdout=subprocess.PIPE, text=True
    ) as process:
        said = 0
        for line in process.stdout:
            said += line.startswith("score ")
            if said == lines:
                process.kill()
                break
        process.communicate()
    assert process.returncode == (0 if lines is None else -9)
    return said


def test_killed_between_dampings_it_ends_as_if_nothing_had_happened(tmp_path):
    whole, path = tmp_path / "whole.h5", tmp_path / "a.h5"
    tiles = run(whole)
    scores = upweight.open_scores(whole)
    m, n = scores.matrix.shape
    a_row = -(-n // 10)
    assert tiles == 3 * a_row * (-(-m // 3) + -(-n // 3))
    for lines in (a_row, 4 * a_row + 1):  # after the first damping of a block; inside the second of the next
        run(path, lines)
        assert not path.exists()
    assert run(path) == tiles  # those that were there count
    for damping, one in upweight.open_scores(path).at_damping.items():
        np.testing.assert_array_equal(one.matrix[:], scores.at_damping[damping].matrix[:])
        np.testing.assert_array_equal(one.on_train.matrix[:], scores.at_damping[damping].on_train.matrix[:])
