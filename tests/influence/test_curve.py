"""The curve over dampings: every point is the score of scores made at that damping alone, whichever way it was reached."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import BY_NAME, Problem
from upweight import GaussNewton, GradientDot, Hessian, LinearHead, UsageError, attribute, lds
from upweight.influence import coordinates, curve
from upweight.influence.attribute import Prepared, prepare
from upweight.influence.curve import damping_curve
from upweight.influence.problem import evaluating
from upweight.influence.truth import Truth, random_parts

DAMPINGS = (0.02, 0.3)
CUTOFFS = (1e-3, 1e-1)
WAYS = {
    "dual": ("mlp", GaussNewton(form="dual")),
    "primal": ("mlp", GaussNewton(form="primal", damping=0.05)),
    "margin": ("conv", GaussNewton(form="dual", rows="margin")),
    "sampled-primal": ("mlp", GaussNewton(form="primal", rows="sampled", samples=3)),
    "several": ("head", GaussNewton(damping=(0.1, "auto"))),
    "head": ("head", LinearHead()),
    "bare-linear": ("bare-linear", LinearHead(damping="auto")),
    "hessian": ("head", Hessian(damping=0.1)),
}
every_way = pytest.mark.parametrize(("name", "curvature"), WAYS.values(), ids=WAYS)


def prepared_of(problem: Problem) -> Prepared:
    name = problem.names[-1].rpartition(".")
    return prepare(
        problem.model,
        problem.train,
        problem.queries,
        parameters=problem.names,
        head=name[0] if problem.parameters == "head" else None,
        loss=None,
        dtype=None,
        device=torch.device("cpu"),
        batch_size=8,
        weight_decay=None,
    )


def matrix(problem: Problem, curvature) -> np.ndarray:
    scores = attribute(
        problem.model,
        problem.train,
        problem.queries,
        parameters=problem.parameters,
        curvature=curvature,
        dtype=torch.float64,
    )
    return scores.matrix


def truth_for(problem: Problem, scores: np.ndarray | None = None, noise: float = 1.0, J: int = 40) -> Truth:
    """Losses of noise, or with what some scores expect below it; the first part has everything."""
    n, m = len(problem.train[1]), len(problem.queries[1])
    rng = np.random.default_rng(0)
    kept = np.concatenate([np.ones((1, n), bool), random_parts(np.zeros(n, int), J - 1, 0.5)])
    loss = rng.normal(size=(J, 2, m))
    if scores is not None:
        signal = kept @ scores.T
        loss = noise * loss - ((signal - signal.mean(0)) / signal.std(0))[:, None]
    return Truth(
        kept=kept,
        seed=np.zeros((J, 2), int),
        loss=loss,
        margin=-loss,
        train_index=np.arange(n),
        query_index=np.arange(m),
    )


def curve_of(problem: Problem, curvature, truth: Truth, **options):
    with evaluating(problem.model):
        return damping_curve(prepared_of(problem), curvature, truth, **options)


@every_way
def test_every_point_is_that_of_scores_made_so(name, curvature):
    problem = BY_NAME[name].build()
    first = curvature.damping[0] if isinstance(curvature.damping, tuple) else curvature.damping
    scores = {("given", None): matrix(problem, replace(curvature, damping=first))}
    scores |= {("damping", d): matrix(problem, replace(curvature, damping=d)) for d in DAMPINGS}
    if not (
        isinstance(curvature, GaussNewton) and curvature.rows == "sampled"
    ):  # whose cut form in the dual is another
        scores |= {("cutoff", c): matrix(problem, replace(curvature, damping=0.0, rcond=c)) for c in CUTOFFS}
    truth = truth_for(problem, scores["damping", 0.3], noise=2.0)
    made = curve_of(problem, curvature, truth, dampings=DAMPINGS, cutoffs=CUTOFFS, resamples=200, seed=3)
    rows = made.table.rows()
    assert [row["kind"] for row in rows] == ["given", "damping", "damping", "cutoff", "cutoff"]
    for (kind, value), wanted in scores.items():
        (row,) = [
            row
            for row in rows
            if row["kind"] == kind
            and (value is None or np.isclose(row["value" if kind == "damping" else "relative"], value))
        ]
        found = lds(wanted, truth, resamples=200, seed=3)
        np.testing.assert_allclose(
            [row["lds"], row["low"], row["high"]], [found.mean, found.low, found.high], atol=1e-9
        )
        assert row["value"] == pytest.approx(row["relative"] * made.lambda_max)


@pytest.mark.parametrize("way", ["dual", "primal", "head"])
def test_a_factorisation_for_each_damping_gives_the_same(way, monkeypatch):
    """What is done where the eigenvectors would cost too much."""
    name, curvature = WAYS[way]
    curvature = replace(curvature, damping=0.05, leave_one_out=True)
    problem = BY_NAME[name].build()
    truth = truth_for(problem)
    at_once = curve_of(problem, curvature, truth, dampings=DAMPINGS, cutoffs=(), resamples=50)
    monkeypatch.setattr(coordinates, "LARGEST", 1)
    monkeypatch.setattr(curve, "QUERIES", 2)
    one_by_one = curve_of(problem, curvature, truth, dampings=DAMPINGS, resamples=50)
    for column in ("value", "lds", "low", "high"):
        np.testing.assert_allclose(one_by_one.table[column], at_once.table[column], atol=1e-9)
    assert one_by_one.lambda_max == pytest.approx(at_once.lambda_max, rel=1e-5)
    assert one_by_one.recommended == at_once.recommended
    coarse = curve_of(problem, curvature, truth, resamples=0)
    np.testing.assert_allclose(coarse.table["relative"][1:], curve.COARSE)
    with pytest.raises(UsageError, match="Cutoffs take the eigenvectors"):
        curve_of(problem, curvature, truth, cutoffs=[0.1])


def test_the_damping_that_made_the_losses_is_found():
    problem = BY_NAME["mlp"].build()
    largest = curve_of(problem, GaussNewton(), truth_for(problem), resamples=0).lambda_max
    for share in (1e-3, 0.1):
        truth = truth_for(problem, matrix(problem, GaussNewton(damping=share * largest)), noise=0.05, J=80)
        made = curve_of(problem, GaussNewton(), truth)
        assert made.recommended / largest == pytest.approx(share, rel=0.01), "on the grid of half powers of ten"
        assert made.score.mean > 0.9
        assert made.given == pytest.approx(largest / 1000, rel=1e-6)


def test_the_choice_and_the_report_use_different_halves():
    problem = BY_NAME["mlp"].build()
    truth = truth_for(problem)  # noise: what one half prefers, the other knows nothing of
    made = curve_of(problem, GaussNewton(), truth, dampings=(1e-4, *DAMPINGS, 5.0), cutoffs=(), seed=5)
    parts = truth.parts(np.arange(1, 40))
    order = np.random.default_rng(5).permutation(39)
    halves = [parts.parts(np.sort(order[:19])), parts.parts(np.sort(order[19:]))]
    scores = {d: matrix(problem, GaussNewton(damping=d)) for d in (made.given, 1e-4, *DAMPINGS, 5.0)}
    found = {d: [lds(one, half, resamples=0).mean for half in halves] for d, one in scores.items()}
    best = max(found, key=lambda d: found[d][0])
    assert made.recommended == best
    assert made.score.mean == pytest.approx(found[best][1], abs=1e-9)
    assert made.score_of_given.mean == pytest.approx(found[made.given][1], abs=1e-9)
    assert made.gain.mean == pytest.approx(found[best][1] - found[made.given][1], abs=1e-9)
    assert made.score.parts == 20 and made.score.low < made.score.mean < made.score.high
    assert f"Damping {best:.3g} (" in made.sentence() and f"LDS is {found[best][1]:.3f} (" in made.sentence()


def test_default_grids_are_relative():
    problem = BY_NAME["head"].build()
    made = curve_of(problem, LinearHead(), truth_for(problem), resamples=0)
    kinds = list(made.table["kind"])
    assert (kinds.count("given"), kinds.count("damping"), kinds.count("cutoff")) == (1, 19, 8)
    np.testing.assert_allclose(made.table["relative"][1:20], np.logspace(-8, 1, 19))
    assert made.given == 0, "the pseudo-inverse"


def test_queries_and_examples_are_found_by_id():
    problem = BY_NAME["head"].build()
    truth = truth_for(problem)
    straight = curve_of(problem, LinearHead(damping=0.1), truth, resamples=0)
    n, m = truth.kept.shape[1], len(truth.query_index)
    turned = replace(
        truth,
        kept=truth.kept[:, ::-1],
        train_index=np.arange(n)[::-1].copy(),
        loss=truth.loss[:, :, :2],
        margin=truth.margin[:, :, :2],
        query_index=np.arange(2),
    )
    assert m > 2
    some = curve_of(
        problem,
        LinearHead(damping=0.1),
        replace(truth, loss=turned.loss, margin=turned.margin, query_index=np.arange(2)),
        resamples=0,
    )
    reversed_ = curve_of(problem, LinearHead(damping=0.1), turned, resamples=0)
    np.testing.assert_allclose(reversed_.table["lds"], some.table["lds"])
    assert not np.allclose(some.table["lds"], straight.table["lds"])


def test_dampings_that_do_not_lift_the_spectrum_are_left_out():
    problem = BY_NAME["mlp"].build()
    made = curve_of(problem, Hessian(damping=2.0), truth_for(problem), dampings=(1e-3, 2.5), cutoffs=(), resamples=0)
    assert made.left_out == (1e-3,)
    assert list(made.table["value"]) == [2.0, 2.5]


def test_what_has_no_curve_is_refused():
    problem = BY_NAME["mlp"].build()
    with pytest.raises(UsageError, match="GradientDot has no damping"):
        curve_of(problem, GradientDot(), truth_for(problem))
    few = truth_for(problem, J=8)
    with pytest.raises(UsageError, match="7 parts to correlate over"):
        curve_of(problem, GaussNewton(), few)
    assert np.isnan(curve_of(problem, GaussNewton(), few, resamples=0).score.low)
