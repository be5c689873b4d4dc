"""The distance of learning without forgetting, held against loops."""

import math

import pytest
import torch
from upweight.models.lwf import feature_distance

DRAW = torch.Generator().manual_seed(0)
ONE, OTHER = (torch.randn(4, 6, generator=DRAW, dtype=torch.float64) for _ in range(2))


def by_hand(kind):
    rows = [[float(ONE[i, j] - OTHER[i, j]) for j in range(6)] for i in range(4)]
    if kind == "mean_abs":
        return sum(abs(v) for row in rows for v in row) / 24
    return sum(math.sqrt(sum(v * v for v in row)) for row in rows) / 4


@pytest.mark.parametrize("kind", ["mean_abs", "l2"])
def test_distance_agrees_with_loops(kind):
    assert float(feature_distance(ONE, OTHER, kind)) == pytest.approx(by_hand(kind), rel=1e-12)


@pytest.mark.parametrize("kind", ["mean_abs", "l2"])
def test_nothing_moved_costs_nothing_and_pulls_nowhere(kind):
    features = ONE.clone().requires_grad_(True)
    distance = feature_distance(features, ONE, kind)
    distance.backward()
    assert not distance.item()
    assert torch.equal(features.grad, torch.zeros_like(ONE))  # not NaN, as a root at zero could give
