"""What the closed form of the head costs."""

from __future__ import annotations

import torch

from .calibrate import seconds_of
from .costs import Task
from .estimate import Matrix, Stage
from .head import LinearHead
from .head_hessian import softmax_hessian
from .head_inverse import SPECTRUM_LIMIT
from .sensitivity import RUN

LANCZOS = 5  # products and solves with eight vectors each
WIDTH = 8
FEW_CLASSES, BLOCK_NUMBERS = 5, 2**21  # of the problem that the assembly is timed on
F64 = torch.float64


def linear_head(task: Task) -> tuple[list[Stage], Matrix, list[str]]:
    """The stages of one variant, where a Cholesky factor serves.

    Args:
        task: The variant.

    Returns:
        Stages, the matrix that is inverted, and what cannot be told beforehand.
    """
    curvature, sampled, machine = task.curvature, task.sampled, task.machine
    assert isinstance(curvature, LinearHead)
    problem, n, C = sampled.problem, sampled.n, sampled.train.num_classes
    k = min(n, problem.p // C)
    D, small = (C - 1) * k, (C - 1) * k <= SPECTRUM_LIMIT
    dtype = F64 if small or curvature.leave_one_out else problem.dtype
    seconds, flops = _invert(task, n, k, C, dtype, known=task.shared)
    if not task.shared:
        seconds += machine.normal_matrix(n, k, F64) + machine.cholesky(k, F64)
        flops += n * k**2 + k**3 / 3
    item = torch.finfo(dtype).bits // 8
    kept = item * D * (D + k) // 2 + 8 * n * (k + 3 * C)
    fitting = task.stage("factor", seconds, flops, memory=kept + (32 * D * D if small else 16 * n * k), kept=kept)
    stages = [fitting, *_leverages(task, n, k, C)]
    damped = curvature.damping != 0
    if damped and small:
        again = _invert(task, n, k, C, dtype, known=True)
        probed = _scoring(task, task.probed, n, D, dtype, RUN)
        both = 2 * again[0] + 3 * probed[0], 2 * again[1] + 3 * probed[1]
        stages.append(task.stage("neighbours at other dampings", *both, memory=8 * D * D))
    tile = min(task.grid[0], max(task.asked, 1))
    seconds, flops = _scoring(task, task.asked, n, D, dtype, task.grid[0])
    stages.append(task.stage("scores", seconds, flops, memory=8 * tile * (3 * D + n) + item * 512 * D))
    what = f"{C - 1} logit{'s' if C > 2 else ''} by {k:,} directions of the features"
    matrix = Matrix(variant=task.variant.name, form="primal", size=D, what=what)
    name = f" ({task.variant.name})" if task.variant.name else ""
    notes = []
    if not damped or curvature.rcond is not None:
        more = machine.eigen(D, vectors=True)
        notes.append(
            f"Where an eigenvalue of the head{name} falls below the cutoff all eigenvectors are computed: {more:.1f} s more. "
            "Features that depend on each other make the matrix smaller than this."
        )
    return stages, matrix, notes


def _invert(task: Task, n: int, k: int, C: int, dtype: torch.dtype, *, known: bool) -> tuple[float, float]:
    """Assembly, eigenvalues of a small matrix or the ends of the spectrum of a large one, and the factor."""
    machine, D = task.machine, (C - 1) * k
    if known and D <= SPECTRUM_LIMIT:  # the matrix and its eigenvalues, at another damping
        return machine.cholesky(D, dtype) + machine.sweep(8 * D * D), D**3 / 3
    blocks = C * (C - 1) / 2
    one = _block(task, n, k, dtype)
    seconds, flops = blocks * one + machine.cholesky(D, dtype), blocks * n * k**2 + D**3 / 3
    if D <= SPECTRUM_LIMIT:
        seconds += machine.eigen(D, vectors=False) + 2 * machine.sweep(32 * D * D)
        return seconds, flops + 4 * D**3 / 3 + 4.0 * D**2 * (C - 1)
    applied = 2 * machine.product(n, k, (C - 1) * WIDTH, F64)
    solved = machine.solve(D, WIDTH, dtype)
    return seconds + LANCZOS * applied + 2 * solved, flops + WIDTH * (LANCZOS * 4.0 * n * D + 4.0 * D**2)


def _scoring(task: Task, count: int, n: int, D: int, dtype: torch.dtype, block: int) -> tuple[float, float]:
    """Solutions for some queries, and their products with all train examples, whose gradients are written for each block."""
    machine = task.machine
    seconds = machine.solve(D, count, dtype) + machine.product(count, D, n, dtype)
    written = -(-count // block) * machine.sweep(3 * torch.finfo(dtype).bits // 8 * n * D)
    return seconds + written + machine.sweep(5 * 8 * D * count), 2.0 * D**2 * count + 2.0 * D * n * count


def _leverages(task: Task, n: int, k: int, C: int) -> list[Stage]:
    """The inverse seen from every train example; for moved losses also the solutions of all of them."""
    machine, curvature, D = task.machine, task.curvature, (C - 1) * k
    if not curvature.leave_one_out:
        return []
    blocks = C * (C - 1) / 2
    seconds = 2 * machine.cholesky(D, F64) + blocks * machine.product(n, k, k, F64)
    flops, memory = 2 * D**3 / 3 + blocks * 2.0 * n * k**2, 8 * D * D + 16 * n * (C - 1) ** 2
    if curvature.leave_one_out == "loss":
        seconds, flops, memory = seconds + machine.solve(D, n, F64), flops + 2.0 * D * D * n, memory + 16 * D * n
    return [task.stage("leverages", seconds, flops, memory=memory)]


def _block(task: Task, n: int, k: int, dtype: torch.dtype) -> float:
    """Seconds of one block of the assembly, several of them side by side."""
    rows = max(1, min(n, BLOCK_NUMBERS // k))

    def time() -> float:
        generator = torch.Generator().manual_seed(0)
        psi = torch.randn(rows, k, generator=generator, dtype=F64).to(task.machine.device)
        hessian = softmax_hessian(torch.zeros(rows, FEW_CLASSES, device=psi.device), psi)
        return seconds_of(lambda: hessian.assemble(dtype=dtype)) / (FEW_CLASSES * (FEW_CLASSES - 1) / 2)

    return task.machine.remembered(("head block", rows, k, dtype), time) * n / rows
