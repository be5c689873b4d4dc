"""The row space of the features: every direction that is there, none that is not, whichever test decides."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from upweight.influence.head_features import independent, row_space


def features(n=30, F=6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, F)))


def assert_spans(phi, V):
    """V is orthonormal, loses nothing of phi, and has no direction to spare."""
    assert_allclose((V.T @ V).numpy(), np.eye(V.shape[1]), atol=1e-13)
    assert_allclose((phi @ V @ V.T).numpy(), phi.numpy(), atol=1e-12 * float(phi.abs().max()))
    assert V.shape[1] == np.linalg.matrix_rank(phi.numpy())


def test_independent_features_stay_as_they_are():
    assert row_space(features()) is None
    assert row_space(features(6, 6)) is None


def dead(phi):
    phi[:, [1, 4]] = 0
    return phi


def duplicated(phi):
    phi[:, 3] = phi[:, 2]
    return phi


def dead_and_duplicated(phi):
    return dead(duplicated(phi))


def combined(phi):
    phi[:, 5] = phi[:, 0] - 2 * phi[:, 1]
    return phi


@pytest.mark.parametrize("spoil", [dead, duplicated, dead_and_duplicated, combined], ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [30, 6, 4])
def test_missing_directions_are_left_out(spoil, n):
    phi = spoil(features(n))
    V = row_space(phi)
    assert V is not None
    assert_spans(phi, V)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_fewer_examples_than_features_span_no_more_than_there_are(n):
    phi = features(n)
    V = row_space(phi)
    assert V is not None and V.shape == (6, n)
    assert_spans(phi, V)


@pytest.mark.parametrize(("ratio", "shown"), [(1e-3, True), (1e-7, False), (1e-9, False), (1e-11, False)])
def test_weak_direction_is_kept_though_the_gram_cannot_show_it(ratio, shown):
    """The Gram matrix sees a singular value of 1e-9 as 1e-18; the answer must not depend on it."""
    phi = features()
    phi[:, 5] = phi[:, 0] + ratio * phi[:, 5]
    V = row_space(phi)
    assert V is None or V.shape == (6, 6)
    assert independent(phi) is shown


def test_direction_below_rounding_is_left_out():
    phi = features()
    phi[:, 5] = phi[:, 0] * (1 + 1e-16)
    V = row_space(phi)
    assert V is not None and V.shape == (6, 5)


def test_scales_do_not_matter():
    assert row_space(features() * 1e-150) is None
    assert row_space(features() * 1e100) is None


def test_no_features_at_all_leave_one_direction_to_score_zero_in():
    V = row_space(torch.zeros(5, 3, dtype=torch.float64))
    assert V is not None and V.shape == (3, 1)
