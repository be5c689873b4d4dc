"""The head's Hessian in all logits but one: against sums of Kronecker products, in any tiling."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from upweight.influence import blas, head_hessian
from upweight.influence.head_hessian import softmax_hessian


def problem(n=25, C=4, k=3, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(n, C)), rng.normal(size=(n, k))


def full_hessian(z, psi):
    """[C k, C k] by a loop over examples."""
    H = 0.0
    for row, phi in zip(z, psi, strict=True):
        q = np.exp(row - row.max())
        q /= q.sum()
        H = H + np.kron(np.diag(q) - np.outer(q, q), np.outer(phi, phi)) / len(z)
    return H


def build(z, psi):
    return softmax_hessian(torch.from_numpy(z), torch.from_numpy(psi))


def others(hessian, k):
    """Rows of the full Hessian that belong to the classes which are kept."""
    return np.concatenate([np.arange(int(a) * k, int(a) * k + k) for a in hessian.keep])


@pytest.mark.parametrize("tile", [1, 4, 6, 2048])
@pytest.mark.parametrize("C", [2, 3, 4, 7])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_assembly_is_the_sum_over_examples(monkeypatch, tile, C, damping):
    monkeypatch.setattr(head_hessian, "TILE", tile)
    z, psi = problem(C=C)
    hessian = build(z, psi)
    kept = others(hessian, 3)
    P = np.eye(3 * C)[:, kept]
    # in terms of weights that sum to zero over the classes, of which all but one are free
    B = P - np.kron(np.ones((C, C)) / C, np.eye(3)) @ P
    want = B.T @ (full_hessian(z, psi) + damping * np.eye(3 * C)) @ B
    tiles = hessian.assemble(damping)
    assert_allclose(tiles.dense().numpy(), want, atol=1e-14)
    assert tiles.sizes == [3 * (g.stop - g.start) for g in hessian.groups]
    assert sum(tiles.sizes) == hessian.size == 3 * (C - 1)
    assert len(tiles.sizes) == {1: C - 1, 4: C - 1, 6: -(-(C - 1) // 2), 2048: 1}[tile]  # of 3 rows a class


@pytest.mark.parametrize("workers", [2, 5])
def test_several_cores_do_the_work_of_one(monkeypatch, workers):
    z, psi = problem(C=5)
    one = build(z, psi)
    X, r = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 3, 6))), one.q[:, one.keep]
    want = np.einsum("akt,na,nk->tn", X.numpy(), r.numpy(), psi)
    monkeypatch.setattr(head_hessian, "PIECE_BYTES", 500)
    monkeypatch.setattr(blas, "workers", lambda flops: workers)
    several = build(z, psi)
    assert_array_equal(several.assemble(0.1).dense(), one.assemble(0.1).dense())
    assert_allclose(several.scores(X, r), want, rtol=1e-12, atol=1e-14)
    assert_allclose(several.scores(X, r[4:9], slice(4, 9)), want[:, 4:9], rtol=1e-12, atol=1e-14)


def test_a_failure_on_another_core_is_not_lost(monkeypatch):
    monkeypatch.setattr(blas, "workers", lambda flops: 3)
    with pytest.raises(ZeroDivisionError):
        blas.side_by_side(lambda i: 1 / i, [2, 1, 0, 1], 1.0, torch.device("cpu"))


def test_assembly_in_float32_is_float32():
    z, psi = problem()
    tiles = build(z, psi).assemble(0.1, torch.float32)
    assert tiles.dtype == torch.float32
    assert_allclose(tiles.dense().numpy(), build(z, psi).assemble(0.1).dense().numpy(), atol=1e-6)


@pytest.mark.parametrize("budget", [1, 2000, 2**27])
def test_applied_is_the_matrix_times_vectors(monkeypatch, budget):
    monkeypatch.setattr(head_hessian, "APPLY_BYTES", budget)
    z, psi = problem()
    hessian = build(z, psi)
    X = np.random.default_rng(2).normal(size=(3, 3, 5))
    want = hessian.assemble().dense().numpy() @ X.reshape(9, 5)
    assert_allclose(hessian.apply(torch.from_numpy(X)).numpy().reshape(9, 5), want, atol=1e-14)


@pytest.mark.parametrize("margin", [5.0, 20.0, 30.0, 100.0])
def test_applied_keeps_its_digits_where_every_example_is_fitted(margin):
    """S_i is then of the size of exp(-margin): differences of numbers near one would have lost it."""
    z, psi = problem(scale=0.3)
    z[np.arange(len(z)), np.arange(len(z)) % 4] += margin
    hessian = build(z, psi)
    X = np.random.default_rng(2).normal(size=(3, 3, 5))
    want = hessian.assemble().dense().numpy() @ X.reshape(9, 5)
    got = hessian.apply(torch.from_numpy(X)).numpy().reshape(9, 5)
    assert_allclose(got, want, rtol=0, atol=1e-13 * abs(want).max())


@pytest.mark.parametrize("C", [2, 3, 6])
@pytest.mark.parametrize("chunk", [1, 2, 128])
def test_eigenvalues_in_contrasts_are_the_full_ones(monkeypatch, C, chunk):
    monkeypatch.setattr(head_hessian, "CHUNK", chunk)
    z, psi = problem(C=C)
    hessian = build(z, psi)
    H = hessian.dense_in_contrasts(hessian.assemble()).numpy()
    full = np.linalg.eigvalsh(full_hessian(z, psi))
    assert_allclose(full[:3], 0, atol=1e-14)
    assert_allclose(np.linalg.eigvalsh(H), full[3:], atol=1e-14)


@pytest.mark.parametrize("rare", [1e-3, 1e-9, 1e-15, 1e-30])
def test_a_rare_class_keeps_its_digits(rare):
    """One example, one constant feature: r^T S^+ s is the sum of r_a s_a / q_a, for r and s that sum to zero."""
    q = np.array([0.3 - rare, rare, 0.7])
    hessian = build(np.log(q)[None], np.ones((1, 1)))
    r, s = np.array([0.5, -1.0, 0.5]), np.array([0.1, -0.6, 0.5])
    H = hessian.assemble()
    assert H.factor_()
    X = torch.from_numpy(s)[hessian.keep][:, None].clone()
    H.solve_(X)
    got = float(torch.from_numpy(r)[hessian.keep] @ X[:, 0])
    assert_allclose(got, (r * s / q).sum(), rtol=1e-12)
