"""Laws of the symmetric pseudo-inverse, and the rules of what is inverted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from upweight import SolveError, UsageError
from upweight.influence.solve import Eigen, Inversion, eigendecompose

EPS = torch.finfo(torch.float64).eps

# drawn by name: zero, repeated, tiny beside large (but far from any cutoff), and negative eigenvalues
eigenvalues = st.lists(st.sampled_from([0.0, 1e-3, 1.0, 1.0, 7.5]), min_size=1, max_size=6)
signed_eigenvalues = st.lists(st.sampled_from([-2.0, -1e-3, 0.0, 1e-3, 1.0, 7.5]), min_size=1, max_size=6)


def symmetric(lams: list[float]) -> np.ndarray:
    """A symmetric matrix with these eigenvalues in a fixed, arbitrary basis."""
    Q = np.linalg.qr(np.random.default_rng(len(lams)).normal(size=(len(lams), len(lams))))[0]
    return (Q * np.array(lams)) @ Q.T


def invert(H: np.ndarray, **rule) -> np.ndarray:
    eigen = eigendecompose(torch.from_numpy(H), EPS)
    V = eigen.V.numpy()
    return (V * eigen.inverse(Inversion(**rule)).numpy()) @ V.T


@given(signed_eigenvalues)
def test_decomposition_gives_the_matrix_back(lams):
    eigen = eigendecompose(torch.from_numpy(symmetric(lams)), EPS)
    V, lam = eigen.V.numpy(), eigen.lam.numpy()
    assert_allclose(V @ V.T, np.eye(len(lams)), atol=1e-13)
    assert_allclose((V * lam) @ V.T, symmetric(lams), atol=1e-13)
    assert_allclose(lam, sorted(lams, reverse=True), atol=1e-13)


@given(signed_eigenvalues)
def test_inverse_is_moore_penrose(lams):
    H, P = symmetric(lams), invert(symmetric(lams))
    # the smallest eigenvalue that is not 0 is 1e-3: rounding grows by a factor of 1e4 at most
    assert_allclose(H @ P @ H, H, atol=1e-10)
    assert_allclose(P @ H @ P, P, atol=1e-7)
    assert_allclose(H @ P, (H @ P).T, atol=1e-10)
    assert_allclose(P, P.T, atol=1e-10)
    assert_allclose(P, np.linalg.pinv(H, rcond=1e-10, hermitian=True), atol=1e-7)


@given(eigenvalues, st.sampled_from([1e-3, 0.5, 20.0]))
def test_damped_inverse_inverts_the_damped_matrix(lams, damping):
    H = symmetric(lams)
    assert_allclose(invert(H, damping=damping) @ (H + damping * np.eye(len(H))), np.eye(len(H)), atol=1e-9)


@given(signed_eigenvalues)
def test_drop_leaves_the_positive_part(lams):
    positive = symmetric([max(lam, 0.0) for lam in lams])
    assert_allclose(invert(symmetric(lams), negative="drop"), np.linalg.pinv(positive, 1e-10, True), atol=1e-7)


def test_drop_with_damping_inverts_the_damped_positive_part():
    lams = [3.0, 1.0, -0.5]
    P = invert(symmetric(lams), damping=0.1, negative="drop")
    assert_allclose(np.linalg.eigvalsh(P), [0, 1 / 3.1, 1 / 1.1], atol=1e-14)


@pytest.mark.parametrize("damping", [0.25, 0.5])
def test_damping_that_leaves_an_eigenvalue_at_or_below_zero_is_refused(damping):
    with pytest.raises(SolveError, match=r"smallest eigenvalue is -0\.5"):
        invert(np.diag([3.0, 1.0, -0.5]), damping=damping)


def test_cutoffs_cut_strictly_above_and_by_absolute_value():
    H = np.diag([4.0, 2.0, 1.0, -2.0])
    assert_allclose(invert(H, rcond=0.25), np.diag([0.25, 0.5, 0.0, -0.5]))
    assert_allclose(invert(H, absolute=2.0), np.diag([0.25, 0.0, 0.0, 0.0]))
    assert_allclose(invert(H, absolute=2.0, damping=3.0), np.diag([1 / 7, 0, 0, 0]))


def test_default_cutoff_follows_the_precision_of_what_was_accumulated():
    H = torch.diag(torch.tensor([1.0, 1e-8, 1e-18], dtype=torch.float64))
    of_float64 = eigendecompose(H, EPS).spectrum(Inversion())
    of_float32 = eigendecompose(H, torch.finfo(torch.float32).eps).spectrum(Inversion())
    assert (of_float64.rank, of_float32.rank) == (2, 1)
    assert of_float64.cutoff == 3 * EPS


def test_zero_curvature_maps_to_zero():
    assert_allclose(invert(np.zeros((3, 3))), np.zeros((3, 3)))


def test_spectrum_facts_of_an_indefinite_matrix():
    eigen = eigendecompose(torch.from_numpy(symmetric([4.0, 1.0, 0.5, 0.0, -0.5])), EPS)
    plain = eigen.spectrum(Inversion(absolute=0.75))
    assert (plain.size, plain.rank, plain.cutoff, plain.damping) == (5, 2, 0.75, 0.0)
    assert_allclose(
        [plain.lambda_max, plain.lambda_min, plain.smallest_kept, plain.condition, plain.trace_kept],
        [4.0, -0.5, 1.0, 4.0, 5 / 6],
    )
    assert_allclose(plain.negative_trace, 0.5 / 6)
    assert_allclose(plain.eigenvalues, [4, 1, 0.5, 0, -0.5], atol=1e-14)
    damped = eigen.spectrum(Inversion(damping=1.0))
    assert (damped.rank, damped.negative) == (5, 1)
    assert_allclose([damped.lambda_max, damped.smallest_kept, damped.condition], [4.0, 0.5, 10.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["damping", "rcond", "absolute"])
def test_numbers_that_are_no_cutoff_or_damping_are_refused(name, bad):
    with pytest.raises(UsageError, match=name):
        Inversion(**{name: bad})


def test_contradicting_rules_are_refused():
    with pytest.raises(UsageError, match="not both"):
        Inversion(rcond=1e-3, absolute=1e-3)


@pytest.mark.untyped
def test_unknown_rules_are_refused():
    with pytest.raises(UsageError, match="'invert' or 'drop'"):
        Inversion(negative="flip")


def test_nan_in_the_curvature_is_named_and_not_decomposed():
    with pytest.raises(SolveError, match="NaN"):
        eigendecompose(torch.full((2, 2), torch.nan, dtype=torch.float64), EPS)


def test_decomposition_leaves_its_input_alone():
    H = torch.from_numpy(symmetric([3.0, 1.0, 0.2]))
    before = H.clone()
    assert isinstance(eigendecompose(H, EPS), Eigen)
    assert torch.equal(H, before)
