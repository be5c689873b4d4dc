"""A model whose outputs depend on the batch, or on chance, has no scores of single examples: refused, with the cause."""

import numpy as np
import pytest
import torch
from cases import BY_NAME
from torch import nn
from upweight import GradientDot, Hessian, LinearHead, SolveError, attribute

HEAD = nn.Linear(6, 3)


class Centred(nn.Module):
    """Subtracts the mean of the batch: no layer that a list of suspects would name."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Noise(nn.Module):
    """Dropout that forgot to look at its mode."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


BAD = {
    "batch statistics": (nn.BatchNorm1d(6, track_running_stats=False), r"BatchNorm1d"),
    "batch mean": (Centred(), r"Centred"),
    "dropout": (Noise(), r"Noise"),
}


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=g), torch.arange(20) % 3


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("curvature", [LinearHead(), Hessian(), GradientDot()], ids=lambda c: type(c).__name__)
def test_dependence_on_the_batch_is_refused_with_the_layer(kind, curvature, data):
    layer, name = BAD[kind]
    with pytest.raises(SolveError, match=rf"depend on the batch.*'1' \({name}\)"):
        attribute(network(layer), data, curvature=curvature)


@pytest.mark.parametrize("kind", BAD)
def test_it_is_refused_for_deeper_parameters_too(kind, data):
    layer, name = BAD[kind]
    with pytest.raises(SolveError, match=name):
        attribute(network(layer), data, parameters="all", curvature=GradientDot())


def test_a_single_train_example_is_no_way_around(data):
    X, y = data
    with pytest.raises(SolveError, match="BatchNorm1d"):
        attribute(network(nn.BatchNorm1d(6, track_running_stats=False)), (X[:1], y[:1]), curvature=GradientDot())


def test_identical_first_examples_are_no_way_around(data):
    """Alone, and among copies of itself, an example has the same batch mean."""
    X, y = data
    X = torch.cat([X[:1].expand(10, -1), X])
    y = torch.cat([y[:1].expand(10), y])
    with pytest.raises(SolveError, match="Centred"):
        attribute(network(Centred()), (X, y))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), nn.Dropout(0.9)], ids=["batch-norm", "dropout"])
def test_layers_that_behave_in_evaluation_are_accepted_in_training_mode(layer, data):
    model = network(layer).train()
    in_training = attribute(model, data, curvature=LinearHead(damping=1e-3)).matrix
    assert model.training and layer.training
    in_evaluation = attribute(model.eval(), data, curvature=LinearHead(damping=1e-3)).matrix
    np.testing.assert_allclose(in_training, in_evaluation, rtol=1e-5)


def test_running_statistics_are_not_moved(data):
    layer = nn.BatchNorm1d(6)
    attribute(network(layer).train(), data, curvature=GradientDot())
    assert layer.num_batches_tracked == 0 and bool((layer.running_mean == 0).all())


def test_confident_examples_are_not_mistaken_for_dependence():
    """Their gradients are nothing but rounding, which does differ between batch sizes."""
    problem = BY_NAME["saturated"].build(dtype=torch.float32)
    attribute(problem.model, problem.train, problem.queries, curvature=LinearHead())


class Kink(nn.Module):
    """A gate that float32 rounding opens in a batch and closes for one example alone; in float64 it is open for both."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        small = x.new_full((len(x), 1), 1e-5)
        gate = (small + 1e4) - 1e4 if len(x) == 1 else small + (1e4 - 1e4)
        return self.out(self.body(x) * (gate > 0).to(x.dtype))


def test_rounding_at_a_kink_is_not_mistaken_for_dependence():
    torch.manual_seed(0)
    X, y = torch.randn(12, 4), torch.arange(12) % 3
    model = Kink()
    alone, together = model(X[:1]), model(X)[:1]
    assert float((alone - together).detach().abs().max()) > 0.1  # it does happen
    attribute(model, (X, y), (X, y), parameters="all", curvature=GradientDot())
