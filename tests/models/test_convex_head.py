"""The optimum of a linear head, held against scikit-learn's and against its own equations."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from upweight import UsageError
from upweight.models.convex_head import TOLERANCE, ConvexHead
from upweight.models.errors import TrainingError


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300] / 16, y[:300].astype(np.int64)


def gradient(theta, X, y, decay):
    """Of the mean loss and the penalty, example by example."""
    phi = np.hstack([X, np.ones((len(X), 1))])
    total = np.zeros_like(theta)
    for one, label in zip(phi, y, strict=True):
        z = theta @ one
        q = np.exp(z - z.max())
        q /= q.sum()
        q[label] -= 1
        total += np.outer(q, one)
    return total / len(X) + decay * theta


@pytest.mark.parametrize("decay", [1e-2, 5e-4])
def test_it_is_the_optimum_that_scikit_learn_finds(digits, decay):
    X, y = digits
    kept = np.random.default_rng(0).random(300) < 0.5
    theta = ConvexHead(torch.from_numpy(X), y, 10, decay).fit(kept, y)
    # the bias is penalised as any weight: a feature that is 1 everywhere, and no intercept
    phi = np.hstack([X, np.ones((300, 1))])[kept]
    C = 1 / (decay * kept.sum())
    solver = LogisticRegression(C=C, fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=500)
    np.testing.assert_allclose(theta, solver.fit(phi, y[kept]).coef_, atol=1e-9)
    assert np.linalg.norm(gradient(theta, X[kept], y[kept], decay)) < TOLERANCE


def test_where_it_begins_and_what_measures_its_steps_are_of_no_matter(digits, monkeypatch):
    X, y = digits
    kept = np.arange(300) != 7
    start = np.random.default_rng(1).standard_normal((10, 65))
    one = ConvexHead(torch.from_numpy(X), y, 10, 1e-3, start).fit(kept, y)
    monkeypatch.setattr("upweight.models.convex_head.DENSE", 0)  # the bound of the Hessian, as for many parameters
    other = ConvexHead(torch.from_numpy(X), y, 10, 1e-3).fit(kept, y)
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_leaving_one_out_has_its_digits(digits):
    """Changes of a query's loss of 1e-5 come out alike to six digits from two fits that begin apart."""
    X, y = digits
    phi = np.hstack([X, np.ones((300, 1))])

    def losses(theta):
        z = phi[:50] @ theta.T
        return np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(50), y[:50]]

    changes = []
    for start in (None, np.full((10, 65), 0.3)):
        head = ConvexHead(torch.from_numpy(X), y, 10, 1e-2, start)
        without = np.arange(300) != 299
        changes.append(losses(head.fit(without, y)) - losses(head.fit(np.ones(300, dtype=bool), y)))
    assert np.abs(changes[0]).min() < 1e-5
    np.testing.assert_allclose(changes[0], changes[1], atol=1e-11)


def test_other_labels_give_another_optimum(digits):
    X, y = digits
    head, every = ConvexHead(torch.from_numpy(X), y, 10, 1e-2), np.ones(300, dtype=bool)
    wrong = (y + (np.arange(300) < 30)) % 10
    theta = head.fit(every, wrong)
    assert np.linalg.norm(gradient(theta, X, wrong, 1e-2)) < TOLERANCE
    assert np.linalg.norm(gradient(head.fit(every, y), X, wrong, 1e-2)) > 1e-2


def test_without_a_decay_there_may_be_no_optimum(digits):
    with pytest.raises(UsageError, match="give a number above 0"):
        ConvexHead(torch.from_numpy(digits[0]), digits[1], 10, 0.0)


def test_a_fit_that_does_not_arrive_is_refused(digits, monkeypatch):
    X, y = digits
    head = ConvexHead(torch.from_numpy(X), y, 10, 1e-3)
    monkeypatch.setattr("upweight.models.convex_head.MAX_STEPS", 1)
    with pytest.raises(TrainingError, match=r"its gradient is .* at most 1e-08 is wanted"):
        head.fit(np.arange(300) < 150, y)
