"""The head's leave-one-out correction and list of dampings beyond the contract: tiles, leverages, refits, what is done once."""

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, HEAD_CASES
from methods import assert_scores, pair_name, parts
from sklearn.datasets import load_digits
from torch import nn
from upweight import LinearHead, UsageError, attribute
from upweight.influence import head, head_hessian, head_inverse, tiles


def score(case, dtype=torch.float64, **options):
    problem = case.build(dtype=dtype)
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=LinearHead(**options)
    )


@pytest.fixture
def large(monkeypatch):
    """Every problem counts as too large for all its eigenvalues, and takes many tiles."""
    monkeypatch.setattr(head_inverse, "SPECTRUM_LIMIT", 0)
    monkeypatch.setattr(head_hessian, "TILE", 8)
    monkeypatch.setattr(tiles, "PIECE", 3)
    monkeypatch.setattr(head, "MOVED_BYTES", 1000)


@pytest.mark.usefixtures("large")
class TestLarge:
    @pytest.mark.parametrize("case", HEAD_CASES, ids=pair_name)
    @pytest.mark.parametrize("kind", [True, "loss"])
    def test_scores_in_tiles_are_those_of_the_loops(self, case, kind):
        want = parts(case).without("logits", kind, 1e-2)
        assert_scores(score(case, damping=1e-2, leave_one_out=kind).matrix, want, 1e-8)

    @pytest.mark.parametrize("name", ["head", "saturated", "image-head"])
    @pytest.mark.parametrize("kind", [True, "loss"])
    def test_scores_in_float32_are_those_of_the_loops(self, name, kind):
        case = BY_NAME[name]
        want = parts(case, torch.float32).without("logits", kind, 1e-2)
        assert_scores(score(case, torch.float32, damping=1e-2, leave_one_out=kind).matrix, want, 1e-4)


@pytest.mark.parametrize(("name", "damping"), [("head", 1e-2), ("few-examples", 1e-3), ("saturated", 1e-4)])
def test_largest_leverage_is_told_where_it_is_high(name, damping):
    case = BY_NAME[name]
    shares = parts(case).kinds["logits"]
    H = shares.sum(axis=0) + damping * np.eye(shares.shape[1])
    largest = max(np.linalg.eigvals(np.linalg.solve(H, share)).real.max() for share in shares)
    said = [w for w in score(case, damping=damping, leave_one_out=True).meta["warnings"] if "leverage" in w]
    assert len(said) == (largest > 0.9)
    assert all(f"is {largest:.2f};" in w for w in said)


def test_some_of_these_have_a_high_leverage():
    assert any(
        "leverage" in w for w in score(BY_NAME["few-examples"], damping=1e-3, leave_one_out=True).meta["warnings"]
    )
    assert not any("leverage" in w for w in score(BY_NAME["few-examples"], damping=1e-3).meta["warnings"])


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("options", [{}, {"leave_one_out": True}, {"leave_one_out": "loss"}, {"rcond": 1e-2}], ids=str)
def test_dampings_share_what_does_not_depend_on_them(monkeypatch, request, size, options):
    if size == "large":
        request.getfixturevalue("large")
    case, dampings = BY_NAME["dead-units"], (1e-2, 1e-3, 0.3)
    want = {damping: score(case, damping=damping, **options).matrix for damping in dampings}
    calls = []
    for module, name in ((head, "row_space"), (head, "softmax_hessian"), (head_inverse, "eigendecompose")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), calls))
    got = score(case, damping=dampings, **options).at_damping
    for damping in dampings:
        assert_scores(got[damping].matrix, want[damping], 1e-12)
    # values first, and vectors where the values show that something is cut
    decompositions = {"small": 1 + ("rcond" in options), "large": int("rcond" in options)}[size]
    assert sorted(calls) == sorted(["row_space", "softmax_hessian", *["eigendecompose"] * decompositions])


def counted(function, calls):
    def noted(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return noted


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"leave_one_out": True}, "leave-one-out.*damping > 0"),
        ({"leave_one_out": "loss", "damping": [1e-3, 0.0]}, "leave-one-out.*damping > 0"),
        ({"leave_one_out": "score", "damping": 1e-3}, "leave_one_out must be"),
    ],
    ids=str,
)
def test_impossible_settings_at_birth(options, words):
    with pytest.raises(UsageError, match=words):
        LinearHead(**options)


def linear(theta):
    model = nn.Linear(theta.shape[1] - 1, theta.shape[0]).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(theta[:, :-1]))
        model.bias.copy_(torch.from_numpy(theta[:, -1]))
    return model


def refits(n, l2, deletions, queries):
    """Real changes of the losses [queries, deletions] of a softmax regression on digits, and what is needed to predict them.

    The last rows are the removed examples themselves.
    """
    X, y = load_digits(return_X_y=True)
    X = X / 16
    train, asked = (X[:n], y[:n]), (X[1000 : 1000 + queries], y[1000 : 1000 + queries])
    theta = reference.fit_softmax(*train, 10, l2=l2)
    removed = np.random.default_rng(0).choice(n, deletions, replace=False)
    everyone = np.concatenate([asked[0], train[0][removed]]), np.concatenate([asked[1], train[1][removed]])
    before = reference.softmax_losses(*everyone, theta)
    change = np.zeros((queries + deletions, deletions))
    for column, i in enumerate(removed):
        weights = np.full(n, 1 / n)
        weights[i] = 0
        without = reference.fit_softmax(*train, 10, l2=l2, weights=weights, start=theta)
        change[:, column] = reference.softmax_losses(*everyone, without) - before
    return theta, train, everyone, removed, change


@pytest.mark.parametrize(("n", "l2"), [(300, 1e-3), (300, 1e-5)])
def test_each_correction_predicts_real_deletions_better_than_the_last(n, l2):
    """Deletions by refits: first-order scores, the leave-one-out correction, the loss at moved logits; then an example's own."""
    queries, deletions = 100, 20
    theta, train, everyone, removed, change = refits(n, l2, deletions, queries)
    sides = [(torch.from_numpy(a), torch.from_numpy(b).long()) for a, b in (train, everyone)]
    pearson, distance, own = [], [], []
    for kind in (False, True, "loss"):
        scores = attribute(linear(theta), *sides, curvature=LinearHead(damping=l2, leave_one_out=kind))
        predicted = scores.matrix[:, removed] / n
        others, real = predicted[:queries].ravel(), change[:queries].ravel()
        pearson.append(np.corrcoef(others, real)[0, 1])
        distance.append(abs((others * real).sum() / (others**2).sum() - 1))  # of the slope of real on predicted from 1
        itself, real = predicted[queries:].diagonal(), change[queries:].diagonal()
        own.append(abs((itself * real).sum() / (itself**2).sum() - 1))
    assert pearson[0] < pearson[1] < pearson[2] and pearson[2] > 0.95
    assert distance[0] > 0.5 > 2 * max(distance[1:])
    assert own[0] > own[1] > own[2]
