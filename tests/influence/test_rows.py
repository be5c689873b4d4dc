"""Residuals, losses and square roots of the output curvature, in the ranges where softmax minus one-hot has no digits."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from upweight.influence.rows import contrasts, cross_entropy, hessian_factor, residuals

MARGINS = [-300.0, -60.0, -20.0, -1.0, 0.0, 1.0, 20.0, 36.0, 40.0, 300.0]


def at_margin(margin: float, classes: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """Logits [C] whose label leads the rest by this margin."""
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=classes), int(rng.integers(classes))
    others = np.delete(z, y)
    z[y] = margin + np.log(np.exp(others).sum())
    return z, y


def tensors(z: np.ndarray, y: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(z)[None], torch.tensor([y])


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("margin", MARGINS)
class TestOneExample:
    def test_residual_is_that_of_the_loops(self, margin, classes):
        z, y = at_margin(margin, classes)
        # relative, entry by entry: a residual of 1e-130 has all its digits; logits of 300 have lost two of theirs
        assert_allclose(residuals(*tensors(z, y))[0], reference.residual(z, y), rtol=1e-12)

    def test_loss_is_that_of_the_loops(self, margin, classes):
        z, y = at_margin(margin, classes)
        assert_allclose(cross_entropy(*tensors(z, y))[0], reference.loss(z, y), rtol=1e-12)

    def test_factor_squares_to_the_curvature(self, margin, classes):
        z, y = at_margin(margin, classes)
        L = hessian_factor(*tensors(z, y))[0].numpy()
        assert L.shape == (classes - 1, classes)
        S = reference.output_curvature(z)
        scale = np.sqrt(np.outer(np.diag(S), np.diag(S)))
        # below a margin of -60 the share of the label is rounded up to e-60, which no score can feel
        assert_allclose(L.T @ L, S, rtol=0, atol=max(1e-12 * scale.max(), 2 * np.exp(-60.0) if margin < -59 else 0))
        if margin > -59:
            assert (abs(L.T @ L - S) <= 1e-12 * scale).all()  # each entry, however small

    def test_residual_is_a_multiple_of_the_first_row(self, margin, classes):
        """r = L^T w with w = -exp(-m / 2) e_1: the gradient lies in the row space of the factor, exactly."""
        z, y = at_margin(margin, classes)
        first = hessian_factor(*tensors(z, y))[0].numpy()[0]
        w = -np.exp(-max(margin, -60.0) / 2)
        assert_allclose(w * first, reference.residual(z, y), rtol=1e-11)

    def test_rows_below_the_first_do_not_touch_the_label(self, margin, classes):
        z, y = at_margin(margin, classes)
        assert (hessian_factor(*tensors(z, y))[0][1:, y] == 0).all()


@given(st.lists(st.sampled_from([-300.0, -20.0, 0.0, 0.0, 1e-9, 5.0, 40.0]), min_size=2, max_size=6), st.data())
def test_factor_and_residual_for_any_logits(logits, data):
    """Equal logits, one class far above or below all others, whatever the label."""
    z = np.array(logits)
    y = data.draw(st.integers(0, len(z) - 1))
    S, r = reference.output_curvature(z), reference.residual(z, y)
    L = hessian_factor(*tensors(z, y))[0].numpy()
    assert np.isfinite(L).all()
    assert_allclose(L.T @ L, S, atol=1e-13)
    assert_allclose(residuals(*tensors(z, y))[0], r, rtol=1e-12, atol=1e-300)
    assert_allclose(L @ np.ones(len(z)), 0, atol=1e-13)  # a shift of all logits is not seen


def test_float32_logits_are_widened_before_anything_cancels():
    z, y = torch.tensor([[20.0, 0.0, 1.0]]), torch.tensor([0])
    r = residuals(z, y)
    assert r.dtype == torch.float64
    assert_allclose(r[0], reference.residual(z[0].double().numpy(), 0), rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_contrasts_are_a_basis_of_what_a_shift_leaves(classes):
    E = contrasts(classes).numpy()
    assert E.shape == (classes, classes - 1)
    assert_allclose(E.T @ E, np.eye(classes - 1), atol=1e-14)
    assert_allclose(E.sum(0), 0, atol=1e-14)
