"""A positive definite matrix in tiles: factored and solved in place, held to numpy's dense algebra."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from upweight.influence import blas
from upweight.influence import tiles as tiles_module
from upweight.influence.tiles import Tiles

SIZES = [[1], [5], [3, 2], [4, 4, 1], [1, 2, 3, 4]]


def make(sizes, dtype=torch.float64, shift=1.0):
    """Tiles of a random matrix with smallest eigenvalue above `shift`, and the matrix; rubbish above the diagonal."""
    D = sum(sizes)
    rng = np.random.default_rng(D)
    A = rng.normal(size=(D, D))
    H = A @ A.T + shift * np.eye(D)
    stops = np.cumsum(sizes)
    rows = [
        [
            torch.tensor(H[stop - size : stop, other - s : other], dtype=dtype).contiguous()
            for other, s in zip(stops[: i + 1], sizes[: i + 1], strict=True)
        ]
        for i, (stop, size) in enumerate(zip(stops, sizes, strict=True))
    ]
    for row in rows:
        row[-1] += torch.full_like(row[-1], 7.0).triu(1)
    return Tiles(rows), H


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_lower_half_stands_for_the_whole_matrix(sizes):
    tiles, H = make(sizes)
    assert_array_equal(tiles.dense().numpy(), np.tril(H) + np.tril(H, -1).T)
    assert tiles.sizes == sizes


@pytest.fixture(params=[512, 2, 1])
def piece(request, monkeypatch):
    """Rows of the pieces that the factorisation works in."""
    monkeypatch.setattr(tiles_module, "PIECE", request.param)


@pytest.fixture(params=[1, 3])
def workers(request, monkeypatch):
    """Cores that share the work, however small."""
    for module in (blas, tiles_module):
        monkeypatch.setattr(module, "workers", lambda flops: request.param)


@pytest.mark.usefixtures("piece", "workers")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 2e-3)], ids=["float64", "float32"])
def test_solve_is_that_of_the_dense_matrix(sizes, dtype, rtol):
    tiles, H = make(sizes, dtype)
    G = np.random.default_rng(1).normal(size=(len(H), 6))
    X = torch.tensor(G, dtype=dtype)
    assert tiles.factor_()
    tiles.solve_(X)
    want = np.linalg.solve(H, G)
    assert_allclose(X.numpy(), want, rtol=0, atol=rtol * abs(want).max())


@pytest.mark.usefixtures("piece", "workers")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_factor_is_cholesky_of_the_dense_matrix(sizes):
    tiles, H = make(sizes)
    before = [tile.data_ptr() for row in tiles.rows for tile in row]
    assert tiles.factor_()
    L = np.linalg.cholesky(H)
    stop = 0
    for row in tiles.rows:
        start, stop = stop, stop + len(row[0])
        got = np.hstack([tile.numpy() for tile in row])
        wanted = np.tril(np.ones((stop - start, stop)), k=start).astype(bool)
        assert_allclose(got[wanted], L[start:stop, :stop][wanted], rtol=1e-10, atol=1e-12)
    assert [tile.data_ptr() for row in tiles.rows for tile in row] == before  # in place


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("at", [0, 3, 7])
def test_indefinite_matrix_is_told_wherever_it_shows(at):
    tiles, _ = make([4, 3, 1])
    tile = next(i for i, stop in enumerate((4, 7, 8)) if at < stop)
    tiles.rows[tile][tile].diagonal()[at - (0, 4, 7)[tile]] = -1.0
    assert not tiles.factor_()


def test_matrix_of_nan_is_not_positive_definite():
    tiles, _ = make([2, 2])
    tiles.rows[1][0].fill_(torch.nan)
    assert not tiles.factor_()
