"""How fast this machine is at what an attribution is made of: the real operations, each timed for a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .blas import as_if, normal_matrix, product
from .solve import eigendecompose
from .tiles import Tiles

SLOT = 0.06  # seconds that one measurement aims at
LARGEST = {torch.float32: 1536, torch.float64: 1280}  # rows of a matrix that a rate is taken from
LARGEST_EIGEN = 1024
LONG = 1.0  # seconds of a first run that is not repeated


def seconds_of(call: Callable[[], object], share: float = 1.0) -> float:
    """Seconds of a call.

    Args:
        call: What to time; the first run warms up, and counts only where it takes long already.
        share: Of the usual time to spend on it.

    Returns:
        The least of its runs: threads that wait for each other on a busy machine stall short calls far more than long ones.
    """
    first = _once(call)  # libraries look around on their first call
    if first > LONG:
        return first
    times = [_once(call)]
    while sum(times) < share * SLOT or (len(times) < 3 and sum(times) < 5 * SLOT):
        times.append(_once(call))
        if len(times) == 50:
            break
    return min(first, *times)


def growing(make: Callable[[int], Callable[[], object]], full: int) -> float:
    """Seconds of a call of some size, from smaller ones where that size takes long.

    Sizes grow until a call takes longer than any overhead: threads that have to wait make short calls look alike.

    Args:
        make: From a size to a call.
        full: The size that is asked for.

    Returns:
        Seconds at the full size: measured, or what the last two sizes lead to.
    """
    size, taken = 1, seconds_of(make(1), 0.2)
    slope = taken
    while size < full and taken < LONG / 4:
        next_size = min(16 * size, full, max(2 * size, int(size * LONG / 2 / taken)))
        before, size_before = taken, size
        size, taken = next_size, seconds_of(make(next_size), 0.5)
        slope = max((taken - before) / (size - size_before), taken / size / 8)
    return taken + slope * (full - size)


def extrapolated(
    make: Callable[[int], Callable[[], object]], measured: int, full: int, power: int, linear: float = 0.0
) -> float:
    """Seconds of a call of some size, from two smaller ones: what does not grow between them is overhead.

    Args:
        make: From a size to a call.
        measured: The larger size that is timed.
        full: The size that is asked for.
        power: The cost grows as this power of the size.
        linear: Seconds a unit of size of something else in the call; left out of what is returned.

    Returns:
        Seconds at the full size.
    """
    measured = min(measured, full)
    taken = seconds_of(make(measured), 0.5)
    own = max(taken - linear * measured, taken / 10)
    if measured == full:
        return own
    half = max(1, measured // 2)
    before = seconds_of(make(half), 0.5) - linear * half
    share = own / measured**power
    slope = (own - before) / (measured**power - half**power) if half < measured else share
    return float(own + min(max(slope, share / 8), share) * (full**power - measured**power))


def count_flops(call: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions that torch runs in a call.

    Args:
        call: What to run once.

    Returns:
        Two for each multiplication with its addition.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _once(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no type for it
        torch.cuda.synchronize()
    return perf_counter() - start


@dataclass(slots=True, eq=False)
class Machine:
    """Seconds of the dense operations, from one timing of each kind at a moderate size.

    Args:
        device: Where they run.
    """

    device: torch.device
    _times: dict[tuple[object, ...], float] = field(default_factory=dict)

    def product(self, a: int, k: int, b: int, dtype: torch.dtype) -> float:
        """A product [a, k] [k, b], by the BLAS of `blas.product`.

        Args:
            a: Rows of the left factor.
            k: What is summed over.
            b: Columns of the right factor.
            dtype: Of both.

        Returns:
            Seconds.
        """
        return self._scaled("product", product, (a, k, b), dtype)

    def torch_product(self, a: int, k: int, b: int, dtype: torch.dtype) -> float:
        """The same by torch.

        Args:
            a: Rows of the left factor.
            k: What is summed over.
            b: Columns of the right factor.
            dtype: Of both.

        Returns:
            Seconds.
        """
        return self._scaled("torch product", torch.matmul, (a, k, b), dtype)

    def _scaled(
        self, name: str, call: Callable[[Tensor, Tensor], object], sizes: tuple[int, int, int], dtype: torch.dtype
    ) -> float:
        a, k, b = (min(size, LARGEST[dtype]) for size in sizes)

        def time() -> float:
            A, B = self._random(a, k, dtype), self._random(k, b, dtype)
            with as_if(2.0 * sizes[0] * sizes[1] * sizes[2]):
                return seconds_of(lambda: call(A, B))

        share = sizes[0] / a * sizes[1] / k * sizes[2] / b
        return self.remembered((name, a, k, b, dtype), time) * share

    def normal_matrix(self, n: int, k: int, dtype: torch.dtype) -> float:
        """A^T A for A [n, k] that is scaled row by row first.

        Args:
            n: Rows.
            k: Columns.
            dtype: Of A.

        Returns:
            Seconds.
        """
        rows = max(1, min(n, 4 * LARGEST[dtype] ** 2 // k))

        def time() -> float:
            A, weights = self._random(rows, k, dtype), self._random(rows, 1, dtype)
            out = torch.empty_like(A)
            with as_if(n * k * k):
                return seconds_of(lambda: normal_matrix(torch.mul(A, weights, out=out)))

        return self.remembered(("normal", rows, k, dtype), time) * n / rows

    def cholesky(self, size: int, dtype: torch.dtype) -> float:
        """A Cholesky factor.

        Args:
            size: Rows of the matrix.
            dtype: Its type.

        Returns:
            Seconds.
        """

        def make(s: int) -> Callable[[], object]:
            A = self._random(s, s, dtype)
            H = A @ A.T + s * torch.eye(s, dtype=dtype, device=self.device)
            return lambda: Tiles([[H.clone()]]).factor_()

        def time() -> float:
            with as_if(2.0 * size**3):
                return extrapolated(make, LARGEST[dtype], size, 3)

        return self.remembered(("cholesky", size, dtype), time)

    def solve(self, size: int, columns: int, dtype: torch.dtype) -> float:
        """Forward and backward substitution.

        Args:
            size: Rows of the triangular factor.
            columns: Right-hand sides.
            dtype: Of both.

        Returns:
            Seconds.
        """
        b = max(1, min(columns, 512))

        def make(s: int) -> Callable[[], object]:
            L = torch.tril(self._random(s, s, dtype)) / s + torch.eye(s, dtype=dtype, device=self.device)
            X = self._random(s, b, dtype)
            return lambda: Tiles([[L]]).solve_(X)

        def time() -> float:
            with as_if(2.0 * size * size * columns):
                return extrapolated(make, LARGEST[dtype], size, 2)

        return self.remembered(("solve", size, b, dtype), time) * columns / b

    def eigen(self, size: int, *, vectors: bool) -> float:
        """All eigenvalues of a symmetric matrix in float64.

        Args:
            size: Its rows.
            vectors: Eigenvectors too.

        Returns:
            Seconds.
        """

        def make(s: int) -> Callable[[], object]:
            A = self._random(s, s, torch.float64)
            H = A @ A.T
            return lambda: eigendecompose(H, 1e-16, vectors=vectors)

        return self.remembered(("eigen", size, vectors), lambda: extrapolated(make, LARGEST_EIGEN, size, 3))

    def sweep(self, nbytes: float) -> float:
        """Reading a large array once.

        Args:
            nbytes: Its size.

        Returns:
            Seconds.
        """

        def time() -> float:
            A, v = self._random(2048, 2048, torch.float64), self._random(2048, 1, torch.float64)
            return seconds_of(lambda: A @ v) / A.nbytes

        return self.remembered(("sweep",), time) * nbytes

    def _random(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(rows, columns, generator=generator, dtype=dtype).to(self.device)

    def remembered(self, key: tuple[object, ...], time: Callable[[], float]) -> float:
        """Time something once.

        Args:
            key: Its name.
            time: How to time it.

        Returns:
            Seconds, as they were the first time.
        """
        if key not in self._times:
            self._times[key] = time()
        return self._times[key]
