"""Per-example gradients read off the layers, against loops of autograd."""

from __future__ import annotations

import pytest
import reference
import torch
from layer_cases import LAYERS, NATIVE, build
from numpy.testing import assert_allclose
from upweight.influence import per_example
from upweight.influence.per_example import gradient_plan, gradients, lengths
from upweight.influence.problem import evaluating, make_problem


def made(name):
    ours = build(name)
    problem = make_problem(
        ours.model, ours.names, head=None, loss=None, dtype=None, device=torch.device("cpu"), weight_decay=None
    )
    X, y = ours.train
    with evaluating(ours.model):
        residual = problem.output_losses(ours.model(X).detach(), y)[1]
    return ours, problem, X, residual


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch, of operations it cannot batch: only slower
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_and_lengths_are_those_of_the_loops(name):
    ours, problem, X, residual = made(name)
    wanted = reference.gradients(ours, *ours.train)
    with evaluating(ours.model):
        plan = gradient_plan(problem, X[:2], 3)
        if plan is None:
            return  # autograd does it all: a weight that is read twice
        assert_allclose(gradients(problem, plan, X, residual), wanted, rtol=1e-10, atol=1e-13)
        assert_allclose(lengths(problem, plan, X, residual), (wanted**2).sum(1) ** 0.5, rtol=1e-10)


@pytest.mark.parametrize("name", NATIVE)
def test_common_layers_need_no_batched_autograd(name, monkeypatch):
    """All of their parameters are read, and the check against autograd found nothing."""
    _, problem, X, _ = made(name)
    with evaluating(problem.model):
        plan = gradient_plan(problem, X[:2], 3)
    assert plan is not None and not plan.other
    assert {f"{layer}.{short}" for layer, shorts in plan.layers.items() for short in shorts} == set(problem.theta)


def test_a_weight_with_another_use_is_left_to_autograd():
    """Read functionally it cannot be told apart, so that nothing is read; shared by two layers it alone is not."""
    plans = {}
    for name in ("tied-functionally", "shared"):
        _, problem, X, _ = made(name)
        with evaluating(problem.model):
            plans[name] = gradient_plan(problem, X[:2], 3)
    assert plans["tied-functionally"] is None
    assert plans["shared"].other == ("first.weight",) and plans["shared"].layers["first"] == ("bias",)


def test_what_disagrees_with_autograd_is_not_used(monkeypatch):
    _, problem, X, _ = made("conv")
    right = per_example.gradients
    monkeypatch.setattr(per_example, "gradients", lambda *args: right(*args) * (1 + 1e-3))
    with evaluating(problem.model):
        assert gradient_plan(problem, X[:2], 3) is None
