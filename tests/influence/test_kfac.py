"""Kronecker factors beyond the contract: where they are exact, what they leave out, and which layers they refuse."""

import cases
import kronecker_reference
import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME
from methods import assert_scores, parts
from numpy.testing import assert_allclose
from torch import nn
from upweight import EKFAC, KFAC, GaussNewton, SolveError, UsageError, attribute
from upweight.influence import kronecker_fit
from upweight.influence.kronecker_fit import squares

BOTH = pytest.mark.parametrize("build", [KFAC, EKFAC])


def score(problem, curvature, **options):
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


class Odd(nn.Module):
    """A convolution in groups that runs twice, dilated; layer norm; no bias at the end."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(100, 3, bias=False)

    def forward(self, x):
        return self.out(self.norm(torch.tanh(self.grouped(torch.tanh(self.grouped(x))))).flatten(1))


def problem_of(model, shape, n=9, **options):
    g = torch.Generator().manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=g, dtype=torch.float64))
    X = torch.randn(n + 3, *shape, generator=g, dtype=torch.float64)
    y = torch.arange(n + 3) % 3
    names = tuple(name for name, _ in model.named_parameters())
    named = {"parameters": "all", "names": names, "num_classes": 3, **options}
    return cases.Problem(model=model, train=(X[:n], y[:n]), queries=(X[n:], y[n:]), **named)


class TestWhereItIsExact:
    @BOTH
    def test_one_example_in_a_head(self, build):
        """The curvature of one example is S (x) phi phi^T: a Kronecker product."""
        problem = problem_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (4,), n=1, parameters="head")
        want = score(problem, GaussNewton(damping=1e-2)).matrix
        assert_scores(score(problem, build(damping=1e-2)).matrix, want, 1e-10)

    @BOTH
    def test_the_same_input_many_times(self, build):
        """Then gradient and input are independent, whatever the labels."""
        problem = problem_of(nn.Linear(4, 3), (4,), n=6, parameters="head")
        X, y = problem.train
        problem = cases.replace(problem, train=(X[:1].expand(6, -1).contiguous(), y))
        want = score(problem, GaussNewton(damping=1e-2)).matrix
        assert_scores(score(problem, build(damping=1e-2)).matrix, want, 1e-10)

    @BOTH
    def test_it_is_not_exact_elsewhere(self, build):
        problem = BY_NAME["head"].build()
        want = score(problem, GaussNewton(damping=1e-2)).matrix
        assert abs(score(problem, build(damping=1e-2)).matrix - want).max() > 1e-2 * abs(want).max()

    def test_measured_eigenvalues_are_never_further_from_the_exact_blocks(self):
        """EK-FAC's eigenvalues are the best of all in its bases, in the Frobenius norm (George et al. 2018)."""
        for name in ("head", "mlp", "conv", "tied"):
            ask = parts(BY_NAME[name])
            near = {kind: np.linalg.norm(ask.kronecker[kind] - ask.ggn) for kind in ("kfac", "ekfac")}
            assert near["ekfac"] < near["kfac"]


class TestLayers:
    @BOTH
    @pytest.mark.parametrize("others", ["dense", "diagonal", "skip"])
    def test_groups_dilation_and_calls_that_repeat(self, build, others):
        problem = problem_of(Odd(), (4, 5, 5))
        H = kronecker_reference.kronecker_curvature(problem, build.__name__.lower(), others)
        G_q, G = (reference.gradients(problem, *side) for side in (problem.queries, problem.train))
        if others == "skip":
            kept = np.diag(H) != 0
            G_q, G = G_q * kept, G * kept
            assert kept.sum() == problem.p - 10
        want = reference.score_matrix(G_q, reference.inverse(H, damping=0.1), G)
        found = score(problem, build(damping=0.1, others=others))
        assert_scores(found.matrix, want, 1e-8)
        said = [s for s in found.meta["warnings"] if "norm" in s]
        assert (
            said
            == {
                "dense": [],
                "diagonal": ["Of these layers the curvature is taken as diagonal: norm."],
                "skip": ["These parameters have no part in the scores: norm.weight, norm.bias."],
            }[others]
        )

    @BOTH
    def test_the_empirical_fisher_by_loops(self, build):
        ask = parts(BY_NAME["conv"])
        H = kronecker_reference.kronecker_curvature(ask.problem, build.__name__.lower(), rows="label")
        got = score(ask.problem, build(damping=1.0, rows="label")).matrix
        assert_scores(got, ask.through(reference.inverse(H, damping=1.0)), 1e-8)

    @BOTH
    def test_samples_come_nearer_to_the_expectation(self, build):
        problem = BY_NAME["mlp"].build()
        want = score(problem, build(damping=0.1)).matrix
        far = [
            abs(score(problem, build(damping=0.1, rows="sampled", samples=s)).matrix - want).max() for s in (4, 1000)
        ]
        assert far[1] < far[0] / 4

    def test_a_layer_without_factors_that_is_too_large_is_named(self, monkeypatch):
        monkeypatch.setattr(kronecker_fit, "DENSE_LIMIT", 17)
        problem = BY_NAME["tokens"].build()
        with pytest.raises(
            SolveError, match=r"Embedding '0' has 18 analysed parameters .* others='diagonal' or 'skip'"
        ):
            score(problem, EKFAC())
        assert np.isfinite(score(problem, EKFAC(others="diagonal")).matrix).all()

    def test_nothing_is_left_without_a_linear_map(self):
        problem = BY_NAME["conv"].build()
        with pytest.raises(SolveError, match="No analysed layer of Sequential is a Linear or Conv2d"):
            attribute(
                problem.model, problem.train, problem.queries, parameters=["1.weight"], curvature=KFAC(others="skip")
            )

    def test_memory_that_is_not_there_is_asked_for_by_name(self):
        problem = BY_NAME["head"].build()
        with pytest.raises(SolveError, match=r"up to layer '2' \[4, 7\] take"):
            score(problem, KFAC(), memory=1000)

    @pytest.mark.parametrize("T", [1, 3, 12])
    def test_squares_in_every_way(self, T):
        """One product at one position, pairs of positions up to five here, rows beyond."""
        g = torch.Generator().manual_seed(0)
        U = torch.randn(5, T, 4, generator=g, dtype=torch.float64)
        D = torch.randn(5, 3, T, 2, generator=g, dtype=torch.float64)
        want = sum((D[i, a].T @ U[i]) ** 2 for i in range(5) for a in range(3))
        assert_allclose(squares(U, D), want, rtol=1e-12)


class TestDamping:
    @BOTH
    def test_auto_is_a_tenth_of_the_mean_eigenvalue_of_the_approximation(self, build):
        ask = parts(BY_NAME["mlp"])
        lam = np.linalg.eigvalsh(ask.kronecker[build.__name__.lower()])
        spectrum = score(ask.problem, build()).spectrum
        assert spectrum.lambda_max == pytest.approx(lam[-1], rel=1e-9)
        assert spectrum.damping == pytest.approx(lam.mean() / 10, rel=1e-9)
        assert spectrum.size == ask.problem.p
        assert score(ask.problem, build(), weight_decay=0.7).spectrum.damping == spectrum.damping

    def test_a_list_reuses_the_factors(self, monkeypatch):
        fits = []
        once = kronecker_fit._factors
        monkeypatch.setattr(kronecker_fit, "_factors", lambda *args: fits.append(1) or once(*args))
        problem = BY_NAME["mlp"].build()
        found = score(problem, KFAC(damping=(0.1, "auto", 1.0)))
        assert len(fits) == 1
        for damping in (0.1, "auto", 1.0):
            assert_scores(found.at_damping[damping].matrix, score(problem, KFAC(damping=damping)).matrix, 1e-12)

    @pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), (0.1, 0.0)])
    def test_it_must_be_positive(self, damping):
        with pytest.raises(UsageError, match="KFAC needs a finite damping > 0"):
            KFAC(damping=damping)

    def test_words_that_do_not_exist(self):
        with pytest.raises(UsageError, match="others must be 'dense', 'diagonal' or 'skip', got 'all'"):
            EKFAC(others="all")
        with pytest.raises(UsageError, match="rows must be one of"):
            EKFAC(rows="columns")
        with pytest.raises(UsageError, match="samples must be at least 1"):
            EKFAC(samples=0)

    def test_another_loss_is_refused(self):
        problem = BY_NAME["mlp"].build()
        with pytest.raises(UsageError, match="EKFAC factors the Fisher matrix of cross-entropy"):
            score(problem, EKFAC(), loss=lambda z, y: (z**2).sum(1))
