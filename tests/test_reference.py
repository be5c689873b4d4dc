"""The ground truth is itself held to second opinions: finite differences, forward-mode Hessians, scikit-learn."""

import warnings

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, CASES, HEAD_CASES, features
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

NON_CONVEX = [case for case in CASES if not case.head]


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_gradients_are_those_of_autograd(case):
    problem = case.build()
    by_residual = reference.gradients(problem, *problem.train)
    # absolute: autograd's own rounding of q - onehot, times the largest input (about 100 where saturated)
    assert_allclose(by_residual, reference.gradients_by_autograd(problem, *problem.train), rtol=1e-12, atol=1e-13)


def test_gradients_keep_their_digits_where_autograd_has_none():
    problem = BY_NAME["saturated"].build()
    X, y = problem.train
    exact = reference.gradients(problem, X[:1], y[:1])[0].reshape(-1, 3)[-1]  # bias gradient = residual, margin 40
    assert_allclose(-exact[y[0]], np.exp(-40.0), rtol=1e-12)  # b = sigmoid(-40), and 1 - q_y in float64 is 0
    assert reference.gradients_by_autograd(problem, X[:1], y[:1])[0].reshape(-1, 3)[-1][y[0]] == 0


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_hessian_is_that_of_torch_func(case):
    problem = case.build()
    net = reference.Network(problem)
    X, y = problem.train

    def mean_loss(theta):
        return sum(net.loss(theta, X[i], int(y[i])) for i in range(len(y))) / len(y)

    with warnings.catch_warnings():
        # torch's first forward-mode derivative goes through torch.jit, which newer versions of it call deprecated
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        dense = torch.func.hessian(mean_loss)(net.theta).detach().numpy()
    largest = abs(dense).max()
    assert_allclose(reference.mean_hessian(problem), dense, rtol=0, atol=1e-14 * largest)


@pytest.mark.parametrize("case", NON_CONVEX, ids=by_name)
def test_hessian_is_the_slope_of_the_gradient(case):
    problem = case.build()
    H = reference.mean_hessian(problem)
    # central differences with step 1e-4: truncation of order 1e-8
    assert_allclose(reference.hessian_by_differences(problem), H, rtol=0, atol=1e-7 * abs(H).max())
    assert np.linalg.eigvalsh(H).min() < -1e-2  # these cases are there because they are indefinite


@pytest.mark.parametrize("case", HEAD_CASES, ids=by_name)
def test_gauss_newton_is_the_hessian_of_a_head(case):
    problem = case.build()
    H = reference.mean_hessian(problem)
    assert_allclose(reference.mean_ggn(problem), H, rtol=0, atol=1e-14 * abs(H).max())


@pytest.mark.parametrize("case", NON_CONVEX, ids=by_name)
def test_gauss_newton_is_not_the_hessian_of_a_network(case):
    problem = case.build()
    assert abs(reference.mean_ggn(problem) - reference.mean_hessian(problem)).max() > 1e-2


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_numerical_rank_is_not_a_matter_of_taste(case):
    """Every spectrum has a gap from 1e-7 down to 1e-14 of its largest eigenvalue, so that any fair cutoff agrees."""
    sizes = abs(np.linalg.eigvalsh(reference.mean_hessian(case.build())))
    relative = sizes / sizes.max()
    assert not ((relative > 1e-14) & (relative < 1e-7)).any()


def test_cases_are_what_their_names_say():
    few = BY_NAME["few-examples"].build()
    assert few.n < features(few, few.train[0]).shape[1] + 1
    assert BY_NAME["fewer-than-classes"].build().n < 5
    dead = BY_NAME["dead-units"].build()
    phi = features(dead, dead.train[0])
    assert np.linalg.matrix_rank(np.c_[phi, np.ones(len(phi))]) == 4
    absent = BY_NAME["absent-class"].build()
    assert 2 not in absent.train[1] and 2 in absent.queries[1]
    saturated = BY_NAME["saturated"].build()
    z = reference.all_logits(saturated, saturated.train[0])
    margins = [np.log(1 / np.expm1(reference.loss(row, y))) for row, y in zip(z, saturated.train[1], strict=True)]
    assert_allclose(margins[:5], [40, 36, 25, -25, -60], rtol=1e-9)
    assert BY_NAME["head"].build(seed=1).train[0][0, 0] != BY_NAME["head"].build(seed=0).train[0][0, 0]
    assert all(case.build().p <= 60 for case in CASES)


@pytest.mark.parametrize("l2", [1e-2, 1e-4])
def test_convex_fit_is_that_of_scikit_learn(l2):
    X, y = load_digits(return_X_y=True)
    X, y = X[:200] / 16, y[:200]
    weights = np.full(200, 1 / 200)
    weights[3], weights[7] = 0.0, 2 / 200
    ours = reference.fit_softmax(X, y, 10, l2=l2, weights=weights)
    # scikit-learn minimises C sum_i s_i l_i + |w|^2 / 2 and leaves its intercept free, but not a column of ones
    with_ones = np.c_[X, np.ones(200)]
    model = LogisticRegression(C=1 / l2, fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=1000)
    theirs = model.fit(with_ones, y, sample_weight=weights).coef_
    assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # newton-cg stops at about 1e-8 in the gradient


def test_pseudo_inverse_is_that_of_numpy():
    H = reference.mean_hessian(BY_NAME["mlp"].build())
    assert_allclose(reference.inverse(H), np.linalg.pinv(H, rcond=1e-11, hermitian=True), rtol=0, atol=1e-10)
    positive = reference.inverse(H, negative="drop")
    values = np.linalg.eigvalsh(positive)
    assert values.min() > -1e-10 and abs(positive - reference.inverse(H)).max() > 1


def test_ranking_skips_self_and_keeps_the_order_of_ties():
    row = np.array([1.0, 3.0, 3.0, -1.0, -1.0])
    assert reference.ranking(row) == [1, 2, 0, 3, 4]
    assert reference.ranking(row, largest=False) == [3, 4, 0, 1, 2]
    assert reference.ranking(row, skip=1) == [2, 0, 3, 4]
