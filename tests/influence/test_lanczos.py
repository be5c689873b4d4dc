"""Block Lanczos: eigenpairs of largest absolute value, residuals that are true, and what happens to negative ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import BY_NAME
from low_rank import digits_like, score, spd
from methods import assert_scores, parts
from numpy.testing import assert_allclose
from torch import nn
from upweight import GaussNewton, Hessian, SolveError, UsageError
from upweight.influence.lanczos import Lanczos, block_lanczos
from upweight.influence.nystroem import Nystroem

CPU = torch.device("cpu")


def lanczos(H, rank, most, block=4, rtol=1e-10):
    return block_lanczos(lambda X: H @ X, len(H), rank, most, block, rtol, torch.Generator().manual_seed(0), CPU)


class TestEigenpairs:
    @pytest.mark.parametrize("block", [1, 3, 8])
    def test_of_largest_absolute_value_whatever_their_sign(self, block):
        values = [3.0, -2.5, 2.0, -1.0, 0.5, *(0.1 * 0.8 ** np.arange(40))]
        H = spd(60, values)
        found = lanczos(H, 5, 60, block=block)
        assert_allclose(found.lam, [3.0, -2.5, 2.0, -1.0, 0.5], atol=1e-10)
        assert_allclose(H @ found.V, found.V * found.lam, atol=1e-8)
        assert_allclose(found.V.T @ found.V, np.eye(5), atol=1e-12)
        assert found.dimension < 60 and not found.said(1e-10)  # it stopped once they had converged

    def test_residuals_are_those_of_the_definition(self):
        H = spd(80, 1 / np.arange(1, 81))
        found = lanczos(H, 10, 24, block=4, rtol=1e-12)
        assert found.dimension == 24
        assert_allclose(found.residual, (H @ found.V - found.V * found.lam).norm(dim=0), rtol=1e-6, atol=1e-14)
        exact = np.sort(np.linalg.eigvalsh(H))[::-1]
        for lam, residual in zip(found.lam, found.residual, strict=True):
            assert abs(exact - float(lam)).min() <= float(residual) + 1e-13

    def test_pairs_that_have_not_converged_are_told(self):
        found = lanczos(spd(80, 1 / np.arange(1, 81)), 10, 12)
        (said,) = found.said(1e-10)
        assert "of 10 eigenpairs have not converged in 12 dimensions" in said and "Raise subspace" in said
        assert f"{float(found.residual.max()):.2g}" in said

    @pytest.mark.parametrize("values", [[], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 1e-14]])
    def test_all_of_a_space_that_is_exhausted_early(self, values):
        """Few or equal eigenvalues: the Krylov space closes, and goes on from random vectors."""
        H = spd(20, values)
        found = lanczos(H, 20, 20, block=3)
        assert_allclose((found.V * found.lam) @ found.V.T, H, atol=1e-13)
        assert_allclose(found.V.T @ found.V, np.eye(20), atol=1e-12)

    def test_last_block_may_be_narrower(self):
        H = spd(11, np.arange(1.0, 12.0))
        assert_allclose(lanczos(H, 11, 11, block=4).lam, np.arange(11.0, 0, -1), rtol=1e-12)


class TestScores:
    def test_error_falls_with_the_rank_and_less_is_left_out_than_by_nystroem(self):
        problem, damping = digits_like(), 1e-2
        want = score(problem, GaussNewton(damping=damping)).matrix
        errors = []
        for rank in (10, 40, 100, 240):
            scores, other = (score(problem, kind(rank=rank, damping=damping)) for kind in (Lanczos, Nystroem))
            errors.append(abs(scores.matrix - want).max() / abs(want).max())
            assert scores.spectrum.left_out <= other.spectrum.left_out or rank == 240  # there both are rounding
        assert (np.diff(errors) < 0).all(), errors
        assert errors[-1] < 1e-8 and errors[0] > 0.1

    def test_true_hessian_of_any_loss(self):
        problem = BY_NAME["mlp"].build()

        def smooth(logits, y):
            return nn.functional.cross_entropy(logits, y, reduction="none", label_smoothing=0.2)

        want = score(problem, Hessian(damping=1.0), loss=smooth).matrix
        got = score(problem, Lanczos(rank=problem.p, curvature="hessian", damping=1.0), loss=smooth).matrix
        assert_scores(got, want, 1e-8)

    def test_negative_eigenvalues_are_refused_or_dropped(self):
        problem, lowest = BY_NAME["mlp"].build(), np.linalg.eigvalsh(parts(BY_NAME["mlp"]).hessian)[0]
        assert lowest < -0.01
        settings = {"rank": problem.p, "curvature": "hessian", "damping": -0.5 * lowest}
        with pytest.raises(SolveError, match=f"indefinite: its smallest eigenvalue is {lowest:.3g}"):
            score(problem, Lanczos(**settings))
        got = score(problem, Lanczos(**settings, negative="drop"))
        want = score(problem, Hessian(damping=-0.5 * lowest, negative="drop"))
        assert_scores(got.matrix, want.matrix, 1e-8)
        assert got.spectrum.negative == want.spectrum.negative > 0

    def test_what_has_not_converged_is_in_the_warnings(self):
        scores = score(digits_like(), Lanczos(rank=30, subspace=32, block=4, damping=1e-3, rtol=1e-3))
        said = [w for w in scores.meta["warnings"] if w.startswith("Lanczos")]
        assert any("have not converged in 32 dimensions" in w for w in said)
        assert any("leaves out a curvature" in w for w in said)
        assert scores.meta["curvature"]["name"] == "Lanczos" and scores.meta["curvature"]["subspace"] == 32

    def test_share_of_an_indefinite_trace_is_not_known(self):
        problem = BY_NAME["mlp"].build()
        facts = score(problem, Lanczos(rank=5, curvature="hessian", damping=1.0)).spectrum
        assert np.isnan(facts.trace_kept) and facts.left_out > 0
        everything = score(problem, Lanczos(rank=problem.p, curvature="hessian", damping=1.0)).spectrum
        assert everything.trace_kept == pytest.approx(1) and everything.left_out == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"curvature": "fisher"}, "curvature must be 'ggn' or 'hessian', got 'fisher'", marks=pytest.mark.untyped
        ),
        ({"block": 0}, "block must be at least 1"),
        ({"rank": 50, "subspace": 49}, "subspace must be at least the rank 50, got 49"),
        ({"rtol": 0.0}, "rtol must lie between 0 and 1"),
        pytest.param({"negative": "flip"}, "negative must be 'invert' or 'drop'", marks=pytest.mark.untyped),
        ({"rank": 0}, "rank must be at least 1"),
    ],
)
def test_settings_are_checked(options, said):
    with pytest.raises(UsageError, match=said):
        Lanczos(**{"damping": 1.0, **options})
