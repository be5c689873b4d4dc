"""Products that are shared among cores, against numpy's own."""

import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from upweight.influence import blas

GENERATOR = torch.Generator().manual_seed(0)


def matrix(rows, columns, dtype=torch.float64):
    return torch.randn(rows, columns, generator=GENERATOR, dtype=dtype)


@pytest.fixture(params=[1, 2, 3, 5])
def cores(request, monkeypatch):
    """As many workers whatever the machine and the size of the work; a job has none of its own."""
    monkeypatch.setattr(blas, "workers", lambda flops: 1 if getattr(blas._here, "busy", False) else request.param)
    return request.param


@pytest.mark.parametrize(("a", "k", "b"), [(7, 5, 3), (3, 5, 7), (1, 4, 1), (2, 3, 2), (64, 1, 9), (11, 0, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_do_not_depend_on_the_cores(cores, a, k, b, dtype):
    A, B = matrix(a, k, dtype), matrix(k, b, dtype)
    wanted = A.double().numpy() @ B.double().numpy()
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(blas.product(A, B).numpy(), wanted, **close)
    np.testing.assert_allclose(blas.times_transposed(A, B.T.contiguous()).numpy(), wanted, **close)
    large = torch.full((a + 2, b + 3), torch.nan, dtype=dtype)
    blas.product(A, B, large[1:-1, 2:-1])
    np.testing.assert_allclose(large[1:-1, 2:-1].numpy(), wanted, **close)
    assert int(large.isnan().sum()) == large.numel() - a * b  # and nothing beside it


@pytest.mark.parametrize("a", [1, 2, 3, 10, 33])
def test_squares_do_not_depend_on_the_cores(cores, a):
    A = matrix(a, 6)
    wanted = A.numpy() @ A.numpy().T
    for found in (blas.times_transposed(A, A), blas.normal_matrix(A.T.contiguous()), blas.normal_matrix(A.T)):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(found, found.T)


def test_strided_factors(cores):
    whole = matrix(20, 30)
    A, B = whole[2:9, 5:25], whole[:, :20].T[:, 3:11]
    np.testing.assert_allclose(blas.product(A, B).numpy(), A.numpy().copy() @ B.numpy().copy(), rtol=1e-12, atol=1e-12)


def test_a_job_shares_nothing_and_blas_keeps_to_one_thread_within(monkeypatch):
    monkeypatch.setattr(blas, "ONE_THREAD_FLOPS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(blas.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    seen = []

    def job(item):
        used = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
        seen.append((blas.workers(1e12), used, threading.get_ident()))

    assert blas.workers(1e12) == 2
    blas.side_by_side(job, range(6), 1e12, torch.device("cpu"))
    assert {(count, *used) for count, used, _ in seen} == {(1, 1)}
    assert threading.get_ident() not in {thread for _, _, thread in seen}
    assert blas.workers(1e12) == 2


def test_a_call_can_be_timed_as_a_part_of_a_larger_one(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(blas.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert blas.workers(1e3) == 1
    with blas.as_if(1e12):
        assert blas.workers(1e3) == 2
    assert blas.workers(1e3) == 1


def test_cores_can_be_more_than_torchs_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(blas.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert blas.workers(1e12) == 1
    with blas.on_cores(2):
        assert blas.workers(1e12) == 2
        with blas.on_cores(8):
            assert blas.workers(1e12) == 3  # as many processors as there are
        assert blas.workers(1e12) == 2
    assert blas.workers(1e12) == 1


@pytest.mark.parametrize(("size", "count", "lengths"), [(10, 3, [3, 4, 3]), (2, 5, [1, 1]), (7, 1, [7]), (0, 3, [0])])
def test_cuts(size, count, lengths):
    parts = blas.cuts(size, count)
    assert [part.stop - part.start for part in parts] == lengths
    assert [i for part in parts for i in range(size)[part]] == list(range(size))
