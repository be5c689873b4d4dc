"""Products of per-example gradients that are not written out, against gradients that are."""

from __future__ import annotations

from dataclasses import replace

import cases
import layer_cases
import numpy as np
import pytest
import reference
import torch
from numpy.testing import assert_allclose
from torch import nn
from upweight.influence import gradients
from upweight.influence.attribute import prepare
from upweight.influence.gradients import Gradients
from upweight.influence.layers import Pair
from upweight.influence.problem import evaluating
from upweight.influence.work import Work

HEADS = {("2.weight", "2.bias"): "2", ("2.weight",): "2", ("2.bias",): "2"}
"""Name of the head where it alone is analysed."""


def sides(ours, dtype=None):
    """Train set and queries of a problem, examined."""
    head = HEADS.get(ours.names)
    with evaluating(ours.model):
        prepared = prepare(
            ours.model, ours.train, ours.queries, parameters=ours.names, head=head, loss=None, dtype=dtype,
            device=torch.device("cpu"), batch_size=4, weight_decay=None,
        )  # fmt: skip
    return prepared.train, prepared.side("queries", "true")


def written(ours, which):
    return torch.from_numpy(reference.gradients(ours, *which))


PROBLEMS = {
    **{f"layer {name}": name for name in layer_cases.LAYERS},
    **{
        f"problem {name}": name
        for name in ("mlp", "conv", "head", "weight-only", "bias-only", "no-bias", "some-layers", "tied", "tokens")
    },
}


def build(name):
    kind, _, name = name.partition(" ")
    return layer_cases.build(name) if kind == "layer" else cases.BY_NAME[name].build()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch, of operations it cannot batch: only slower
@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_products_are_those_of_the_gradients(name, memory):
    """With vectors, with other gradients and with their directions; kept and read again."""
    ours = build(name)
    with evaluating(ours.model):
        train, queries = sides(ours)
        G, Q = written(ours, ours.train), written(ours, ours.queries)
        found = Gradients.of(train, Work(memory=memory))
        V = torch.randn(3, train.problem.p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for examples in (slice(0, len(train)), slice(1, len(train) - 1)):
            some = G[examples]
            assert_allclose(found.times(found.arranged(V), examples), V @ some.T, rtol=1e-9, atol=1e-12)
            packed = Gradients.of(queries, keep=False).packed(slice(0, len(queries)))
            assert_allclose(found.dots(packed, examples), Q @ some.T, rtol=1e-9, atol=1e-12)
            packed = Gradients.of(queries, keep=False).packed(slice(0, len(queries)), unit=True)
            cosines = nn.functional.normalize(Q, dim=1) @ nn.functional.normalize(some, dim=1).T
            assert_allclose(found.dots(packed, examples, unit=True), cosines, rtol=1e-9, atol=1e-12)


def test_gradients_of_linear_layers_are_not_written_out():
    """Not of a layer that sees one vector an example; but of one that is called twice, or sees a sequence."""
    ours = cases.BY_NAME["mlp"].build()
    with evaluating(ours.model):
        train, _ = sides(ours)
        found = Gradients.of(train)
        assert all(isinstance(part, Pair) for part in found.read(slice(0, 2)))
        assert found.each < train.problem.p * 8
        train, _ = sides(layer_cases.build("reused"))
        pairs = [part for part in Gradients.of(train).read(slice(0, 2)) if isinstance(part, Pair)]
        assert [pair.D.shape[3] for pair in pairs] == [layer_cases.CLASSES]  # the last layer alone is


def test_blocks_are_kept_as_far_as_memory_goes(monkeypatch):
    ours = cases.BY_NAME["mlp"].build()
    monkeypatch.setattr(gradients, "read_size", lambda each, budget: 2)
    with evaluating(ours.model):
        train, _ = sides(ours)
        found = Gradients.of(train)
        found.keep = 5 * found.each
        calls = []
        read = found.read
        found = replace(found, read=lambda rows: calls.append(rows) or read(rows))
        V = torch.randn(2, train.problem.p, dtype=torch.float64)
        for _ in range(2):
            found.times(found.arranged(V), slice(1, 7))
    assert calls == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7), slice(4, 6), slice(6, 7)]


def test_pieces_of_long_products_fit_together(monkeypatch):
    ours = cases.BY_NAME["mlp"].build()
    monkeypatch.setattr(gradients, "FLIGHT_BYTES", 1)
    with evaluating(ours.model):
        train, _ = sides(ours)
        found = Gradients.of(train)
        V = torch.randn(2, train.problem.p, dtype=torch.float64)
        assert_allclose(
            found.times(found.arranged(V), slice(0, len(train))), V @ written(ours, ours.train).T, rtol=1e-9, atol=1e-12
        )


def test_a_gradient_too_small_to_be_squared_still_has_a_direction():
    """float32: its square is zero, its length is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([60.0, 0.0]))
    X, y = torch.randn(4, 4), torch.zeros(4, dtype=torch.int64)
    from upweight import GradientDot, attribute

    scores = attribute(model, (X, y), (X, y), parameters="all", curvature=GradientDot(cosine=True)).matrix
    assert_allclose(np.diagonal(scores), 1, rtol=1e-5)
