"""Clocks, memory marks, the rate of a matrix product, counted operations, and the distance of two score matrices."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from .problems import Problem, Spec

GIB = 2**30


def gemm_rate(dtype: str, size: int = 1536, seconds: float = 0.6) -> tuple[float, float]:
    """Operations per second, of the clock and of all cores together, of a square product: the better of numpy's and torch's.

    Each is the best of several products: what the machine gives when nobody interrupts.
    """
    a = np.random.default_rng(0).normal(size=(size, size)).astype(dtype)
    t = torch.from_numpy(a)
    wall = cpu = np.inf
    for product in (lambda: a @ a[::-1], lambda: t @ t):
        product()
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            start, used = time.perf_counter(), time.process_time()
            product()
            wall, cpu = min(wall, time.perf_counter() - start), min(cpu, time.process_time() - used)
    return 2 * size**3 / wall, 2 * size**3 / cpu


class PeakMemory:
    """Growth of the resident memory of this process between two points, in bytes."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        self.start = self._now()

    def growth(self) -> int:
        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.start)

    @staticmethod
    def _now() -> int:
        try:
            return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(scores: np.ndarray, exact: np.ndarray) -> dict[str, float | None]:
    """Largest error over the largest score, and Spearman's correlation over train examples, averaged over queries."""
    if scores.shape != exact.shape:
        raise ValueError(f"scores are {scores.shape}, the reference {exact.shape}")
    finite = bool(np.isfinite(scores).all())
    error = float(np.abs(scores - exact).max() / np.abs(exact).max()) if finite else None
    return {"error": error, "spearman": spearman(scores, exact) if finite else None}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the rank correlation; a constant row counts as 0."""
    A, B = (rankdata(x, axis=1) for x in (a, b))
    A, B = A - A.mean(1, keepdims=True), B - B.mean(1, keepdims=True)
    norms = np.sqrt((A**2).sum(1) * (B**2).sum(1))
    return float(np.divide((A * B).sum(1), norms, out=np.zeros(len(A)), where=norms > 0).mean())


def head_operations(spec: Spec) -> float:
    """Closed-form head in contrast space: symmetric blocks, Cholesky, one solve a query, products with the train examples."""
    k = min(spec.n, spec.F + 1)
    D = (spec.C - 1) * k
    assembly = spec.C * (spec.C - 1) / 2 * spec.n * k**2
    return assembly + D**3 / 3 + 2 * D**2 * spec.m + 2 * D * spec.n * spec.m


def newton_operations(problem: Problem) -> float:
    """Dual Gauss-Newton: Gram and cross-Gram layer by layer, each the cheaper way, Cholesky and one solve a query."""
    tail = problem.tail()
    n, m, R = len(tail.y), len(tail.yq), tail.spec.C - 1
    N = n * R
    shapes: list[tuple[int, int, int]] = []  # positions, inputs with the bias, outputs

    def note(layer: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs = layer.weight[0].numel() + (layer.bias is not None)
        shapes.append((output[0, 0].numel(), inputs, layer.weight.shape[0]))

    layers = [layer for layer in tail.model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        tail.model(tail.X[:1])
    for handle in handles:
        handle.remove()
    total = 0.0
    for T, inside, out in shapes:
        ghost = n**2 * T**2 * (inside + R**2 * out) + 2 * n * m * T**2 * (inside + R * out)
        rows = N**2 * inside * out + 2 * N * m * inside * out + 2 * (N + m) * T * inside * out
        total += min(ghost, rows)
    return total + N**3 / 3 + 2 * N**2 * m
