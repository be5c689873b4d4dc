"""Scaled weights: their norm by numpy, their gradient by torch's own spectral norm, and what folding leaves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from upweight.models.spectral import Scaled, fold_weights, scale_weights


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def norm_of(weight):
    return np.linalg.norm(weight.detach().numpy().reshape(len(weight), -1), ord=2)


X = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(6) % 3


def train(module, steps, rate=0.05):
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X), Y).backward()
        optimizer.step()


@pytest.mark.parametrize("beta", [0.4, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_still_weights_have_the_norm_to_the_last_digits(beta, seed):
    module = layers(seed)
    scale_weights(module, beta, seed)
    module.train()
    for _ in range(300):
        module(X)
    fold_weights(module)
    for layer in (module[0], module[3], module[5]):
        assert norm_of(layer.weight) == pytest.approx(beta, rel=1e-9)


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_trained_weights_have_the_norm_as_well_as_one_iteration_a_step_knows_it(beta):
    module = layers()
    scale_weights(module, beta, 0)
    train(module, 30, rate=0.005)
    fold_weights(module)
    for layer in (module[0], module[3], module[5]):
        # u^T W v never exceeds the largest singular value: the norm is never below beta; 5% for the lag of 30 short steps
        assert beta * (1 - 1e-12) <= norm_of(layer.weight) < beta * 1.05


def test_training_agrees_with_torchs_own_spectral_norm():
    ours = layers()
    theirs = layers()
    scale_weights(ours, 1.0, 0)
    for place in (0, 3, 5):
        spectral_norm(theirs[place])
        mine, other = ours[place].parametrizations.weight[0], theirs[place].parametrizations.weight[0]
        other._u.copy_(mine.u)
        other._v.copy_(mine.v)
    train(ours, 5)
    train(theirs, 5)
    ours.eval(), theirs.eval()
    for place in (0, 3, 5):
        torch.testing.assert_close(ours[place].weight, theirs[place].weight, rtol=1e-12, atol=1e-14)


def test_beta_multiplies_the_weight_and_its_gradient():
    pair = [layers(), layers()]
    for module, beta in zip(pair, (1.0, 0.25), strict=True):
        scale_weights(module, beta, 0)
        module.eval()
        module[3].weight.sum().backward()
    one, quarter = pair
    torch.testing.assert_close(quarter[3].weight, one[3].weight / 4)
    gradients = [module[3].parametrizations.weight.original.grad for module in pair]
    torch.testing.assert_close(gradients[1], gradients[0] / 4)


def test_folding_changes_no_output_and_leaves_a_plain_network():
    module = layers()
    names = module.state_dict().keys()
    scale_weights(module, 0.6, 0)
    train(module, 3)
    module.eval()
    expected = module(X)
    assert torch.equal(module(X), expected)  # no iteration in evaluation mode
    fold_weights(module)
    assert torch.equal(module(X), expected)
    assert module.state_dict().keys() == names
    fold_weights(module)
    assert torch.equal(module(X), expected)


def test_only_weights_of_convolutions_and_linear_layers_are_scaled():
    module = layers()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scale_weights(module, 0.5, 0)
    fold_weights(module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in {"0.weight", "3.weight", "5.weight"}), name


def test_zero_weight_stays_zero():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    scale_weights(module, 0.5, 0)
    module(torch.ones(1, 3))
    fold_weights(module)
    assert torch.equal(module.weight, torch.zeros(2, 3))


def test_start_of_the_iteration_is_seeded_and_global_random_numbers_stay_out_of_it():
    starts = []
    for seed in (1, 1, 2):
        module = nn.Linear(30, 20)
        nn.init.eye_(module.weight)  # every vector is a singular vector of it: the start decides
        state = torch.random.get_rng_state()
        scale_weights(module, 1.0, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        starts.append(module.parametrizations.weight[0].u)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


SHAPES = [(1, 1), (3, 1), (1, 4), (4, 3), (2, 6), (3, 2, 2, 2), (1, 3, 3, 3)]


def matrix(kind, shape, seed):
    """Weights of a kind, by name the nasty ones too."""
    draw = np.random.default_rng(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    if kind == "orthogonal":  # every singular value the same
        W = np.linalg.qr(draw.normal(size=(max(rows, columns), min(rows, columns))))[0]
        W = W if rows >= columns else W.T
    elif kind == "rank one":
        W = np.outer(draw.normal(size=rows), draw.normal(size=columns))
    elif kind == "gap":  # the largest twice the next, so that the iteration has something to find
        u, _, vt = np.linalg.svd(draw.normal(size=(rows, columns)), full_matrices=False)
        W = (u * 0.5 ** np.arange(len(vt))) @ vt
    else:
        W = draw.normal(size=(rows, columns))
    return torch.from_numpy(W.reshape(shape))


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    kind=st.sampled_from(["normal", "orthogonal", "rank one", "gap"]),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
    beta=st.sampled_from([0.4, 1.0, 7.0]),
    seed=st.integers(0, 30),
    steps=st.integers(0, 3),
)
def test_scaled_weight_is_the_weight_over_an_estimate_that_never_overrates_its_norm(
    kind, shape, scale, beta, seed, steps
):
    W = scale * matrix(kind, shape, seed)
    scaled = Scaled(W, beta, torch.Generator().manual_seed(seed))
    for _ in range(steps):
        scaled(W)
    again = scaled.eval()(W)
    assert torch.equal(scaled(W), again)  # looking moves nothing
    factor = norm_of(again) / beta
    assert factor >= 1 - 1e-12  # u^T W v never exceeds the largest singular value
    torch.testing.assert_close(
        again * norm_of(W), W * norm_of(again), rtol=1e-9, atol=1e-12 * scale
    )  # only its length changes
    if kind != "normal":  # as good as exact where one iteration suffices, or where the iterations gain a quarter each
        assert factor <= 1 + 1e-6
    bigger = Scaled(3 * W, beta, torch.Generator().manual_seed(seed))  # how large a weight is makes no difference
    for _ in range(steps):
        bigger(3 * W)
    torch.testing.assert_close(bigger.eval()(3 * W), again, rtol=1e-7, atol=1e-12)
