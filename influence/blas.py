"""Matrix products and triangular factors at the speed of the machine: numpy's and scipy's BLAS on the CPU, torch's elsewhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .fortran import call, leading

Item = TypeVar("Item")

_CPU = torch.device("cpu")
_here = threading.local()
"""Of this thread: busy, that it does one of several jobs; cores, how many it may use; assumed, the size that its calls are said
to have."""

ONE_THREAD_FLOPS = 2e9  # a shorter call gains little from a second thread, and loses a lot where that one has to wait


@contextmanager
def as_if(flops: float) -> Generator[None, None, None]:
    """Share calls among cores as if they were of another size, for timing a part of a larger one.

    Args:
        flops: Operations of the larger call.

    Yields:
        Nothing.
    """
    _here.assumed = flops
    try:
        yield
    finally:
        del _here.assumed


@contextmanager
def on_cores(count: int) -> Generator[None, None, None]:
    """Share work among so many cores, however few threads torch has.

    Args:
        count: How many.

    Yields:
        Nothing.
    """
    before = getattr(_here, "cores", None)
    _here.cores = count
    try:
        yield
    finally:
        _here.cores = before


def side_by_side(work: Callable[[Item], Any], items: Iterable[Item], flops: float, device: torch.device) -> None:
    """Independent jobs on all cores, each on one thread: no core waits for another within a product.

    Args:
        work: Does one job in place, by numpy (which lets other threads run meanwhile) or on a GPU.
        items: What to do it with.
        flops: Operations in all.
        device: Where the tensors are.
    """
    if device.type != "cpu":
        for item in items:
            work(item)
        return
    count = workers(flops)
    with one_thread():
        if count == 1:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(count, initializer=_begin_job) as pool:
            for _ in pool.map(work, items):
                pass


def _begin_job() -> None:
    _here.busy = True


def _alone() -> AbstractContextManager[Any]:
    """A context for one BLAS call on one thread; within a job that is so already."""
    return nullcontext() if getattr(_here, "busy", False) else one_thread()


def workers(flops: float) -> int:
    """How many threads some work is worth.

    Args:
        flops: Operations in all.

    Returns:
        The number that torch may use, or that `on_cores` says, at most one for each processor of this process; 1 for short work,
        and within a job.
    """
    if getattr(_here, "busy", False):
        return 1
    flops = getattr(_here, "assumed", flops)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = getattr(_here, "cores", None) or torch.get_num_threads()
    return min(cores, processors) if flops >= ONE_THREAD_FLOPS else 1


def one_thread() -> AbstractContextManager[Any]:
    """Keep every BLAS call on one thread.

    A BLAS with threads of its own leaves them spinning after a call, for some hundredths of a second in which torch's threads
    want the same cores. Hence it never gets more than one here, and work is shared out by `side_by_side`.

    Returns:
        A context to make the calls in.
    """
    limits: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limits


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looking for them takes longer than many a product


def times_transposed(A: Float[Tensor, "a k"], B: Float[Tensor, "b k"]) -> Float[Tensor, "a b"]:
    """A B^T.

    On the CPU through numpy: its BLAS is the faster one on some processors, and takes half the operations (syrk) when both
    factors are one and the same array.

    Args:
        A: Left factor.
        B: Right factor, of the same type and device; A itself for a symmetric product.

    Returns:
        The product, in the type of the factors.
    """
    if A.is_cuda or A.dtype not in (torch.float32, torch.float64):
        return A @ B.T
    a = A.detach().contiguous().numpy()
    out = A.new_empty(len(A), len(B))
    if B is A:
        _square(a, out.numpy())
    else:
        _product(a, B.detach().contiguous().numpy().T, out.numpy())
    return out


def product(A: Float[Tensor, "a k"], B: Float[Tensor, "k b"], out: Tensor | None = None) -> Float[Tensor, "a b"]:
    """A B, without copies as long as one axis of each is contiguous.

    Args:
        A: Left factor.
        B: Right factor, of the same type and device.
        out: Where to put the product, part of a larger matrix perhaps; None: a new tensor.

    Returns:
        The product.
    """
    if out is None:
        out = A.new_empty(len(A), B.shape[1])
    if A.is_cuda:
        torch.matmul(A, B, out=out)
    else:
        _product(A.numpy(), B.numpy(), out.numpy())
    return out


def normal_matrix(A: Float[Tensor, "n k"], out: Tensor | None = None) -> Float[Tensor, "k k"]:
    """A^T A: half the operations of a general product on the CPU (syrk).

    Args:
        A: The factor.
        out: Where to put the product; None: a new tensor.

    Returns:
        The whole symmetric matrix.
    """
    if A.is_cuda:
        return product(A.T, A, out)
    if out is None:
        out = A.new_empty(A.shape[1], A.shape[1])
    _square(A.numpy().T, out.numpy())
    return out


def _product(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any]) -> None:
    """Put a b into `out`, cut along its longer side."""
    flops = 2.0 * out.size * a.shape[1]
    count = workers(flops)
    if count == 1:
        with _alone():
            np.matmul(a, b, out=out)
        return
    rows, columns = out.shape

    def fill(part: slice) -> None:
        if rows >= columns:
            np.matmul(a[part], b, out=out[part])
        else:
            np.matmul(a, b[:, part], out=out[:, part])

    side_by_side(fill, cuts(max(rows, columns), count), flops, _CPU)


def _square(a: NDArray[Any], out: NDArray[Any]) -> None:
    """Put a a^T into `out`; what lies above the diagonal is copied from below."""
    flops = float(out.size) * a.shape[1]
    count = workers(flops)
    if count == 1:
        with _alone():
            np.matmul(a, a.T, out=out)
        return
    parts = cuts(len(a), count if count == 2 else 2 * count)  # two cores: a square for one, two triangles for the other

    def fill(at: tuple[slice, slice]) -> None:
        i, j = at
        np.matmul(a[i], a[j].T, out=out[i, j])
        if i != j:
            out[j, i] = out[i, j].T

    pairs = [(i, j) for at, i in enumerate(parts) for j in parts[:at]]
    side_by_side(fill, [*pairs, *zip(parts, parts, strict=True)], flops, _CPU)


def cuts(size: int, count: int) -> list[slice]:
    """Cut a row of things into nearly equal parts.

    Args:
        size: How many things.
        count: How many parts, at most.

    Returns:
        The parts, none of them empty.
    """
    count = max(1, min(size, count))
    bounds = [round(i * size / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def multiply(A: Float[Tensor, ...], B: Float[Tensor, ...], out: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """A times B entry by entry, broadcast; on the CPU on one thread.

    Args:
        A: A factor.
        B: The other.
        out: Where to put the product.

    Returns:
        `out`.
    """
    if out.is_cuda:
        torch.mul(A, B, out=out)
    else:
        np.multiply(A.numpy(), B.numpy(), out=out.numpy())
    return out


def in_units(X: Float[Tensor, "c k b"], dtype: torch.dtype) -> tuple[Float[Tensor, "c k b"], Float[Tensor, " b"]]:
    """Columns of unit size in another type: in float32 the gradient of a well fitted example would underflow.

    Args:
        X: Vectors, float64.
        dtype: The type.

    Returns:
        Contiguous vectors and their sizes, float64.
    """
    size = torch.maximum(X.amax((0, 1)), -X.amin((0, 1)))
    size = torch.where(size > 0, size, 1.0)
    return torch.div(X, size, out=X.new_empty(X.shape, dtype=dtype)), size


def negate_(A: Float[Tensor, "a b"]) -> None:
    """A <- -A; on the CPU on one thread.

    Args:
        A: Changed.
    """
    if A.is_cuda:
        A.neg_()
    else:
        np.negative(A.numpy(), out=A.numpy())


def subtract_product(C: Float[Tensor, "a b"], A: Float[Tensor, "a k"], B: Float[Tensor, "b k"]) -> None:
    """C -= A B^T in place; the rows of all three contiguous. With B the same tensor as A only the lower triangle of C is changed.

    Args:
        C: Changed.
        A: Left factor.
        B: Right factor.
    """
    if C.is_cuda:
        C.addmm_(A, B.T, alpha=-1)
        return
    (a, k), b = A.shape, len(B)
    if A is B:
        call("syrk", "U", "T", a, k, -1.0, A, leading(A), 1.0, C, leading(C))
    else:
        call("gemm", "T", "N", b, a, k, -1.0, B, leading(B), A, leading(A), 1.0, C, leading(C))


def cholesky_(H: Float[Tensor, "k k"]) -> bool:
    """Lower Cholesky factor in place, from the lower triangle; what is above the diagonal is never read.

    Args:
        H: With contiguous rows; changed.

    Returns:
        Whether H was positive definite to rounding.
    """
    if H.is_cuda:
        L, info = torch.linalg.cholesky_ex(H)
        H.copy_(L)
        return int(info) == 0 and bool(torch.isfinite(H.diagonal()).all())
    info = call("potrf", "U", len(H), H, leading(H))
    return info == 0 and bool(torch.isfinite(H.diagonal()).all())


def divide_(A: Float[Tensor, "a k"], L: Float[Tensor, "k k"]) -> None:
    """A <- A L^-T in place.

    Args:
        A: With contiguous rows; changed.
        L: Lower triangle.
    """
    if A.is_cuda:
        A.copy_(torch.linalg.solve_triangular(L, A.T, upper=False).T)
    else:
        call("trsm", "L", "U", "T", "N", A.shape[1], len(A), 1.0, L, leading(L), A, leading(A))


def solve_triangle_(L: Float[Tensor, "k k"], X: Float[Tensor, "k b"], *, transposed: bool) -> None:
    """X <- L^-1 X, or L^-T X, in place.

    Args:
        L: Lower triangle.
        X: Right-hand sides in columns, its rows contiguous; changed.
        transposed: Backward substitution: solve with L^T.
    """
    if X.is_cuda:
        X.copy_(torch.linalg.solve_triangular(L.T if transposed else L, X, upper=transposed))
    else:
        side = "T" if transposed else "N"
        call("trsm", "R", "U", side, "N", X.shape[1], len(X), 1.0, L, leading(L), X, leading(X))


def subtract_applied(X: Float[Tensor, "i b"], L: Tensor, Y: Float[Tensor, "j b"], *, transposed: bool) -> None:
    """X -= L Y, or L^T Y, in place; the rows of all contiguous.

    Args:
        X: Changed.
        L: [i, j]; [j, i] when `transposed`.
        Y: What it is applied to.
        transposed: Apply L^T.
    """
    if X.is_cuda:
        X.addmm_(L.T if transposed else L, Y, alpha=-1)
    else:
        (i, b), j = X.shape, len(Y)
        side = "T" if transposed else "N"
        call("gemm", "N", side, b, i, j, -1.0, Y, leading(Y), L, leading(L), 1.0, X, leading(X))
