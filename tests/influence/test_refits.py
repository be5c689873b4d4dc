"""What the scores promise, held against models that are really refitted, and against other people's software."""

import numpy as np
import pytest
import reference
import statsmodels.api as sm
import torch
from cases import BY_NAME, features
from methods import assert_scores
from sklearn.datasets import load_digits
from statsmodels.stats.outliers_influence import MLEInfluence
from torch import nn
from upweight import Hessian, LinearHead, attribute


def linear_model(theta: np.ndarray) -> nn.Linear:
    """nn.Linear with these weights and biases [C, F + 1]."""
    model = nn.Linear(theta.shape[1] - 1, theta.shape[0]).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(theta[:, :-1]))
        model.bias.copy_(torch.from_numpy(theta[:, -1]))
    return model


def tensors(X: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(X), torch.from_numpy(y).long()


@pytest.mark.parametrize("l2", [1e-2, 0.0])
@pytest.mark.parametrize("curvature", [LinearHead, Hessian])
def test_scores_are_the_slope_of_the_loss_in_an_examples_weight(curvature, l2):
    """score = -d l_t / d eps for f + eps l_i: every example nudged up and down by eps, and refitted to convergence."""
    problem = BY_NAME["fitted"].build()
    X, Xq = features(problem, problem.train[0]), features(problem, problem.queries[0])
    y, yq = problem.train[1].numpy(), problem.queries[1].numpy()
    theta = reference.fit_softmax(X, y, 3, l2=l2)

    eps = 1e-5  # truncation of order eps^2, rounding of order 1e-14 / eps: both far below 1e-4
    slopes = np.zeros((len(yq), len(y)))
    for i in range(len(y)):
        losses = []
        for nudge in (eps, -eps):
            weights = np.full(len(y), 1 / len(y))
            weights[i] += nudge
            moved = reference.fit_softmax(X, y, 3, l2=l2, weights=weights, start=theta)
            losses.append(reference.softmax_losses(Xq, yq, moved))
        slopes[:, i] = (losses[0] - losses[1]) / (2 * eps)

    scores = attribute(linear_model(theta), tensors(X, y), tensors(Xq, yq), curvature=curvature(damping=l2))
    assert_scores(scores.matrix, -slopes, 1e-4)


@pytest.fixture(scope="module")
def digits():
    """300 digits fitted with L2 1e-2 on weights and biases; 40 of them really left out, one by one; 100 queries."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    X, y, Xq, yq = X[:300], y[:300], X[1000:1100], y[1000:1100]
    theta = reference.fit_softmax(X, y, 10, l2=1e-2)
    before = reference.softmax_losses(Xq, yq, theta)
    removed = np.random.default_rng(0).choice(300, 40, replace=False)
    change = np.zeros((100, 40))
    for column, i in enumerate(removed):
        weights = np.full(300, 1 / 300)  # weights kept: the others stay at 1/n, and L2 as it is
        weights[i] = 0
        without = reference.fit_softmax(X, y, 10, l2=1e-2, weights=weights, start=theta)
        change[:, column] = reference.softmax_losses(Xq, yq, without) - before
    return theta, (X, y), (Xq, yq), removed, change


def test_removing_an_example_changes_the_loss_by_score_over_n(digits):
    theta, train, queries, removed, change = digits
    scores = attribute(linear_model(theta), tensors(*train), tensors(*queries), curvature=LinearHead(damping=1e-2))
    predicted = scores.matrix[:, removed] / 300
    assert np.corrcoef(predicted.ravel(), change.ravel())[0, 1] > 0.98
    slope = (predicted * change).sum() / (predicted**2).sum()
    assert (
        0.9 < slope < 1.5
    )  # first order leaves leverage out: real changes are a little larger, never of other sign or unit


def test_most_helpful_example_really_helps(digits):
    """The sign by itself: of the examples left out, the highest score is one whose removal raises the loss."""
    theta, train, queries, removed, change = digits
    scores = attribute(linear_model(theta), tensors(*train), tensors(*queries), curvature=LinearHead(damping=1e-2))
    sampled = scores.matrix[:, removed]
    assert (change[np.arange(100), sampled.argmax(1)] > 0).all()
    assert (change[np.arange(100), sampled.argmin(1)] < 0).all()


def test_wrong_penalty_predicts_worse(digits):
    """The damping is the L2 of the objective: leaving it out is noticed by this very test bed."""
    theta, train, queries, removed, change = digits
    damped = attribute(linear_model(theta), tensors(*train), tensors(*queries), curvature=LinearHead(damping=1e-2))
    undamped = attribute(linear_model(theta), tensors(*train), tensors(*queries), curvature=LinearHead())
    right = np.corrcoef(damped.matrix[:, removed].ravel(), change.ravel())[0, 1]
    wrong = np.corrcoef(undamped.matrix[:, removed].ravel(), change.ravel())[0, 1]
    assert wrong < right - 0.1


def test_two_classes_are_the_logistic_regression_of_statsmodels():
    """d_params, freed of its leverage, is the first-order change of parameters when an example is left out.

    statsmodels: d_params_i = params - params_without_i = -(H_sum^-1 g_i) / (1 - h_ii), with H_sum = n H. So
    score[t, i] = -n g_t . d_params_i (1 - h_ii), for the logistic loss with label 1 at logit x . beta.
    """
    rng = np.random.default_rng(0)
    X, Xq = rng.normal(size=(80, 3)), rng.normal(size=(11, 3))
    y, yq = (rng.random(80) < 1 / (1 + np.exp(-X[:, 0] + 0.5))).astype(int), rng.integers(0, 2, 11)
    result = sm.Logit(y, sm.add_constant(X)).fit(disp=False, method="newton", tol=1e-14)
    influence = MLEInfluence(result)
    first_order = influence.d_params * (1 - influence.hat_matrix_diag)[:, None]  # [n, F + 1], constant first
    expected = np.zeros((11, 80))
    for t in range(11):
        x = np.r_[1.0, Xq[t]]
        g = (1 / (1 + np.exp(-x @ result.params)) - yq[t]) * x
        for i in range(80):
            expected[t, i] = -80 * (g @ first_order[i])

    half = np.r_[result.params[1:], result.params[0]] / 2  # softmax of (-z/2, z/2) is the logistic function of z
    scores = attribute(linear_model(np.stack([-half, half])), tensors(X, y), tensors(Xq, yq), curvature=LinearHead())
    assert_scores(scores.matrix, expected, 1e-8)  # as far as statsmodels' Newton converges
    assert scores.matrix[0, 0] * expected[0, 0] > 0


def test_binomial_glm_of_statsmodels_agrees_too():
    """GLM's one-step change goes through the weighted hat matrix, another road to the same numbers."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 2))
    y = (rng.random(60) < 1 / (1 + np.exp(-X[:, 0]))).astype(int)
    result = sm.GLM(y, sm.add_constant(X), family=sm.families.Binomial()).fit(tol=1e-14)
    influence = result.get_influence()
    first_order = influence.d_params * (1 - influence.hat_matrix_diag)[:, None]
    gradients = (result.fittedvalues - y)[:, None] * sm.add_constant(X)
    half = np.r_[result.params[1:], result.params[0]] / 2
    scores = attribute(linear_model(np.stack([-half, half])), tensors(X, y), curvature=LinearHead())
    assert_scores(scores.matrix, -60 * gradients @ first_order.T, 1e-8)
