"""Layers and the ways to use them: the rows of the Gauss-Newton factor are read off each, and none may be skipped."""

from dataclasses import replace

import numpy as np
import pytest
import reference
from layer_cases import LAYERS, NATIVE, build
from methods import assert_scores
from upweight import GaussNewton, attribute


@pytest.fixture(scope="module")
def truths():
    """Scores with damping 0.05 by loops, computed once for both forms."""
    known = {}

    def truth(name: str) -> np.ndarray:
        if name not in known:
            problem = build(name)
            G_train, G_query = (
                reference.gradients(problem, *problem.train),
                reference.gradients(problem, *problem.queries),
            )
            known[name] = G_query @ reference.inverse(reference.mean_ggn(problem), damping=0.05) @ G_train.T
        return known[name]

    return truth


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch, of operations it cannot batch: only slower
@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_a_layer_are_those_of_the_loops(name, form, truths):
    problem = build(name)
    got = attribute(
        problem.model, problem.train, problem.queries, parameters="all", curvature=GaussNewton(damping=0.05, form=form)
    )
    assert_scores(got.matrix, truths(name), 1e-10)


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("conv", "0.bias"),
        ("conv", "0.weight"),
        ("batch-norm", "0.bias"),
        ("reused", "inner.weight"),
        ("in-place", "first.weight"),
    ],
)
def test_one_parameter_of_a_layer(name, chosen, form):
    alone = replace(build(name), parameters=(chosen,), names=(chosen,))
    G_train, G_query = reference.gradients(alone, *alone.train), reference.gradients(alone, *alone.queries)
    want = G_query @ reference.inverse(reference.mean_ggn(alone), damping=0.05) @ G_train.T
    curvature = GaussNewton(damping=0.05, form=form)
    got = attribute(alone.model, alone.train, alone.queries, parameters=(chosen,), curvature=curvature)
    assert_scores(got.matrix, want, 1e-10)


def closed_road(problem, names, *_):
    raise AssertionError(f"{', '.join(names)} went through torch.func")


@pytest.mark.parametrize("name", NATIVE)
def test_common_layers_are_read_by_hooks(name, truths, monkeypatch):
    """Where hooks disagree with autograd, autograd takes over, slowly; so that a slip of the fast road is seen, it may not."""

    monkeypatch.setattr("upweight.influence.layers.rows_by_torch_func", closed_road)
    problem = build(name)
    got = attribute(
        problem.model,
        problem.train,
        problem.queries,
        parameters="all",
        curvature=GaussNewton(damping=0.05, form="dual"),
    )
    assert_scores(got.matrix, truths(name), 1e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("name", ["conv", "reused", "bare", "attention"])
def test_blocks_of_rows_change_nothing(name, block, form, truths, monkeypatch):
    """11 examples in blocks of 4 leave a shorter one; the lower triangle of tiles is mirrored."""
    monkeypatch.setattr("upweight.influence.rowset.block_size", lambda *_, **__: block)
    problem = build(name)
    scores = attribute(
        problem.model,
        problem.train,
        problem.queries,
        parameters="all",
        curvature=GaussNewton(damping=0.05, form=form),
        train_scores=True,
    )
    assert_scores(scores.matrix, truths(name), 1e-10)
    assert_scores(scores.on_train.matrix, scores.on_train.matrix.T, 1e-9)


@pytest.mark.parametrize("ghost", [True, False])
@pytest.mark.parametrize("name", ["conv", "conv-groups", "linear-positions", "reused", "in-place"])
def test_inner_products_without_rows_are_those_with_rows(name, ghost, truths, monkeypatch):
    """Which road is cheaper is decided by counting; both must be right."""
    monkeypatch.setattr("upweight.influence.rowset._ghost_wins", lambda *_: ghost)
    monkeypatch.setattr("upweight.influence.layers.rows_by_torch_func", closed_road)
    problem = build(name)
    curvature = GaussNewton(damping=0.05, form="dual")
    got = attribute(problem.model, problem.train, problem.queries, parameters="all", curvature=curvature)
    assert_scores(got.matrix, truths(name), 1e-10)
