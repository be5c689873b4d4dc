"""Nystroem's approximation: from below, exact at its rank, with an estimate of what it leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME
from low_rank import digits_like, score, spd
from methods import assert_scores, parts
from numpy.testing import assert_allclose
from torch import nn
from upweight import GaussNewton, Hessian, SolveError, UsageError
from upweight.influence.low_rank import look_outside
from upweight.influence.nystroem import Nystroem, nystroem

RNG = np.random.default_rng(0)


class TestDecomposition:
    def test_it_is_the_formula(self):
        H, W = spd(12, 2.0 ** -np.arange(12)), torch.from_numpy(RNG.normal(size=(12, 5)))
        lam, V = nystroem(H @ W, W, 2.2e-16)
        want = (H @ W) @ torch.linalg.pinv(W.T @ H @ W) @ (H @ W).T
        assert_allclose((V * lam) @ V.T, want, atol=1e-13)
        assert_allclose(V.T @ V, np.eye(5), atol=1e-13)
        assert (lam[:-1] >= lam[1:]).all()

    @pytest.mark.parametrize("rank", [3, 7, 12])
    def test_exact_from_the_rank_on_however_small_the_rest(self, rank):
        """The core W^T H W is singular then: the shift keeps its Cholesky factor alive."""
        H, W = spd(12, [1.0, 1e-3, 1e-9]), torch.from_numpy(RNG.normal(size=(12, rank)))
        lam, V = nystroem(H @ W, W, 2.2e-16)
        assert_allclose((V * lam) @ V.T, H, atol=3e-14)
        assert (lam >= 0).all()

    def test_never_above_the_matrix(self):
        H, W = spd(30, 1 / np.arange(1, 31)), torch.from_numpy(RNG.normal(size=(30, 8)))
        lam, V = nystroem(H @ W, W, 2.2e-16)
        assert torch.linalg.eigvalsh(H - (V * lam) @ V.T).min() > -1e-13

    def test_an_indefinite_matrix_is_refused(self):
        H, W = spd(10, [1.0, -1.0, 0.5]), torch.from_numpy(RNG.normal(size=(10, 10)))
        with pytest.raises(SolveError, match="not positive semi-definite"):
            nystroem(H @ W, W, 2.2e-16)

    def test_zero_is_zero(self):
        lam, _ = nystroem(torch.zeros(6, 3).double(), torch.from_numpy(RNG.normal(size=(6, 3))), 2.2e-16)
        assert_allclose(lam, 0, atol=1e-250)


@pytest.mark.parametrize("decay", ["slow", "fast", "clustered"])
@pytest.mark.parametrize("rank", [5, 20])
def test_what_is_left_out_is_estimated_within_a_factor_of_two(decay, rank):
    p = 200
    values = {
        "slow": 1 / np.arange(1, p + 1),
        "fast": 0.7 ** np.arange(p),
        "clustered": np.r_[np.ones(10), 0.1 * np.ones(190)],
    }
    H = spd(p, values[decay])
    e, U = torch.linalg.eigh(H)
    e, U = e[-rank:], U[:, -rank:]
    rest = torch.linalg.eigvalsh(H - (U * e) @ U.T)
    seen = [look_outside(lambda X: H @ X, e, U, torch.Generator().manual_seed(seed)) for seed in range(5)]
    norms = np.array([one.norm for one in seen])
    assert (norms <= float(rest[-1]) * (1 + 1e-9)).all() and (norms >= float(rest[-1]) / 2).all()
    traces = np.array([one.trace for one in seen])
    assert_allclose(traces.mean(), float(rest.sum()), rtol=0.25)  # 40 vectors: 1.4 / sqrt(40 x effective dimension)


class TestScores:
    def test_error_falls_with_the_rank_to_nothing(self):
        problem = digits_like()
        damping = 1e-2
        want = score(problem, GaussNewton(damping=damping)).matrix
        errors, left = [], []
        for rank in (10, 40, 100, 200, 240):
            scores = score(problem, Nystroem(rank=rank, damping=damping))
            errors.append(abs(scores.matrix - want).max() / abs(want).max())
            left.append(scores.spectrum.left_out)
        assert (np.diff(errors) < 0).all() and (np.diff(left) < 0).all(), (errors, left)
        assert errors[-1] < 1e-8  # 240 = n (C - 1) rows
        assert errors[0] > 1e-2  # else nothing was shown

    def test_inverse_is_off_by_no_more_than_the_estimate_says(self):
        """|(H_k + lam)^-1 - (H + lam)^-1| = |E| / (|E| + lam) / lam at most for 0 <= H_k <= H, E = H - H_k."""
        problem, damping = digits_like(), 1e-2
        lengths = [
            np.linalg.norm(reference.gradients(problem, *side), axis=1) for side in (problem.queries, problem.train)
        ]
        want = score(problem, GaussNewton(damping=damping)).matrix
        for rank in (10, 60, 150):
            scores = score(problem, Nystroem(rank=rank, damping=damping))
            E = 2 * scores.spectrum.left_out
            bound = E / (E + damping) / damping * np.outer(*lengths)
            assert (abs(scores.matrix - want) <= bound + 1e-9).all()

    def test_it_says_how_much_is_left_out(self):
        few = score(digits_like(), Nystroem(rank=5, damping=1e-3))
        assert any("Nystroem with 5 eigenvectors leaves out a curvature of up to" in w for w in few.meta["warnings"])
        many = score(digits_like(), Nystroem(rank=240, damping=1e-3))
        assert not any("eigenvectors" in w for w in many.meta["warnings"])
        assert few.spectrum.trace_kept < 0.8 and many.spectrum.trace_kept == pytest.approx(1)
        true = np.trace(reference.mean_ggn(digits_like()))
        assert few.spectrum.eigenvalues.sum() / few.spectrum.trace_kept == pytest.approx(true, rel=0.4)

    def test_outside_the_subspace_the_damping_acts_alone_or_nothing_does(self, monkeypatch):
        found, decompose = [], Nystroem._decompose
        monkeypatch.setattr(Nystroem, "_decompose", lambda *args: found.append(decompose(*args)) or found[-1])
        ask = parts(BY_NAME["mlp"])
        for how in ("damping", "drop"):
            got = score(ask.problem, Nystroem(rank=6, damping=0.3, complement=how)).matrix
            lam, V = (value.numpy() for value in (found[-1][0].lam, found[-1][0].V))
            inverse = (V / (lam + 0.3)) @ V.T + (how == "damping") * (np.eye(len(V)) - V @ V.T) / 0.3
            assert_scores(got, ask.through(inverse), 1e-9)

    def test_undamped_where_the_complement_is_dropped(self):
        problem = BY_NAME["head"].build()
        got = score(problem, Nystroem(rank=problem.p, damping=0, complement="drop")).matrix
        assert_scores(got, parts(BY_NAME["head"]).through(reference.inverse(parts(BY_NAME["head"]).ggn)), 1e-8)

    def test_dampings_share_one_decomposition(self, monkeypatch):
        problem = BY_NAME["mlp"].build()
        calls = []
        decompose = Nystroem._decompose
        monkeypatch.setattr(Nystroem, "_decompose", lambda *args: (calls.append(1), decompose(*args))[1])
        scores = score(problem, Nystroem(rank=10, damping=["auto", 0.1, 1.0]), weight_decay=1e-9)
        assert len(calls) == 1
        for damping in (0.1, 1.0):
            want = score(problem, Nystroem(rank=10, damping=damping)).matrix
            assert_allclose(scores.at_damping[damping].matrix, want, rtol=1e-12, atol=0)
        assert scores.spectrum.left_out > scores.spectrum.lambda_max / 1000
        assert scores.spectrum.damping == scores.spectrum.left_out, (
            "outside the subspace it stands for what is left out"
        )
        dropped = score(problem, Nystroem(rank=10, complement="drop")).spectrum
        assert dropped.damping == pytest.approx(dropped.lambda_max / 1000)
        assert score(problem, Nystroem(rank=10), weight_decay=0.5).spectrum.damping == pytest.approx(1.5)

    def test_another_seed_is_another_subspace_and_the_same_one_is_the_same(self):
        problem = digits_like()
        one, again, other = (score(problem, Nystroem(rank=20, seed=seed)).matrix for seed in (0, 0, 1))
        assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"damping": 0.0}, "the damping is all there is to invert, and it is 0"),
        ({"damping": [1.0, 0.0]}, "the damping is all there is to invert"),
        ({"damping": -1.0}, "damping must be a finite number"),
        ({"complement": "keep"}, "complement must be 'damping' or 'drop', got 'keep'"),
    ],
)
def test_settings_are_checked(options, said):
    with pytest.raises(UsageError, match=said):
        Nystroem(**options)


def test_another_loss_and_too_little_memory_are_refused():
    problem = BY_NAME["mlp"].build()
    with pytest.raises(UsageError, match="take 'hessian'"):
        score(problem, Nystroem(), loss=lambda logits, y: nn.functional.cross_entropy(logits, y, reduction="none"))
    with pytest.raises(SolveError, match="lower the rank"):
        score(problem, Nystroem(rank=30), memory=1000)


def test_hessian_and_nystroem_agree_on_a_convex_head():
    problem = BY_NAME["fitted"].build()
    want = score(problem, Hessian(damping=1e-2)).matrix
    assert_scores(score(problem, Nystroem(rank=100, damping=1e-2)).matrix, want, 1e-8)
