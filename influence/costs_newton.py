"""What the exact Gauss-Newton inverse costs, in the form that it will take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .calibrate import extrapolated
from .costs import Task
from .estimate import Matrix, Stage
from .gauss_newton import GaussNewton
from .gram import cross_gram, gram
from .newton import SPECTRUM_LIMIT
from .rows_sample import Rows, layer_flops, pair_flops, sample_rows, writing_flops, writing_seconds

TOGETHER = 32  # queries of the sample that are solved for at once
LANCZOS = 8  # applications to find the largest eigenvalue, as a rule
MEASURED_FLOPS, MEASURED_BYTES = 6e9, 2**27  # of inner products that are timed
F32, F64 = torch.float32, torch.float64


def gauss_newton(task: Task) -> tuple[list[Stage], Matrix]:
    """The stages of one variant.

    Args:
        task: The variant.

    Returns:
        Stages, and the matrix that is inverted.
    """
    assert isinstance(task.curvature, GaussNewton)
    rows = sample_rows(task.sampled, task.curvature, task.work)
    formed = [] if task.shared else [_catch(task, rows), (_gram if rows.form == "dual" else _normal)(task, rows)]
    cross = _crossing(rows)
    stages = [
        *formed,
        _factor(task, rows),
        *_further(task, rows),
        _sensitivity(task, rows, cross),
        _scores(task, rows, cross),
    ]
    n, R = rows.n, rows.R
    what = (
        f"{n:,} train examples with {R} row{'s' if R > 1 else ''} each"
        if rows.form == "dual"
        else "the analysed parameters"
    )
    return stages, Matrix(variant=task.variant.name, form=rows.form, size=rows.size, what=what)


def _catch(task: Task, rows: Rows) -> Stage:
    u, layers = rows.unkept, len(rows.one.pairs) + (rows.one.written.shape[1] > 0)
    again = layers * u * (u - 1) / 2 if rows.form == "dual" else u  # train gradients of the primal form
    passes = rows.n + again * rows.held.block
    return task.stage(
        "catch the rows",
        rows.planned + passes * rows.catch,
        passes * rows.catch_flops,
        memory=rows.nbytes + rows.held.block * rows.one.nbytes,
        kept=rows.nbytes,
    )


def _gram(task: Task, rows: Rows) -> Stage:
    blocks, b = len(rows.held.blocks), rows.held.block
    n, N = rows.n, rows.size
    few, full = _measured(rows, pair_flops(rows.one, rows.R)), min(b, n)
    halved, alike = layer_flops(rows.one, rows.R)
    writing = writing_seconds(rows.block(few))
    alone = extrapolated(lambda count: partial(gram, rows.block(count), rows.products), few, full, 2, writing)
    pair = alone * (halved + alike) / (halved / 2 + alike)  # of two blocks that are not the same
    whole = n / full  # blocks, the last one perhaps a part of one
    seconds = whole * alone + (whole * whole - whole) / 2 * pair + n * (blocks + 1) / 2 * writing
    flops = n * n / 2 * halved + n * (n + min(b, n)) / 2 * alike + n * writing_flops(rows.one) * (blocks + 1) / 2
    widest = max([rows.one.written.shape[1], *(pair.width for pair in rows.one.pairs if not pair.ghost)])
    item = torch.finfo(task.sampled.problem.dtype).bits // 8
    block = min(b, n) * rows.R
    memory = 8 * N * N + 2 * item * block * widest + (8 + 2 * item) * block**2
    return task.stage("inner products", seconds, flops, memory=memory, kept=8 * N * N)


def _measured(rows: Rows, flops: float) -> int:
    """Examples whose inner products are timed: enough that overhead does not count."""
    most = min(rows.held.block, rows.n, max(1, MEASURED_BYTES // max(1, rows.one.nbytes)))
    return max(1, min(most, int((MEASURED_FLOPS / flops) ** 0.5)))


def _normal(task: Task, rows: Rows) -> Stage:
    n, R, p, b = rows.n, rows.R, rows.size, rows.held.block
    seconds = task.machine.normal_matrix(n * R, p, F64) + -(-n // b) * task.machine.sweep(24 * p * p)
    memory = 16 * p * p + 24 * b * R * p
    flops = float(n * R) * p * p + n * writing_flops(rows.one)
    return task.stage("products of rows", seconds, flops, memory=memory, kept=8 * p * p)


def _factor(task: Task, rows: Rows) -> Stage:
    machine, size = task.machine, rows.size
    matrix = 8 * size * size
    if task.curvature._spectral:
        if task.shared:
            return task.stage("factor", 0.0, 0.0)
        decomposed = machine.eigen(size, vectors=True)
        return task.stage("eigenvectors", decomposed, 4.0 * size**3, memory=4 * matrix, kept=matrix)
    seconds = machine.cholesky(size, F64) + 2 * machine.sweep(matrix)
    flops = size**3 / 3
    if size <= SPECTRUM_LIMIT:
        seconds += 0.0 if task.shared else machine.eigen(size, vectors=False)
        flops += 0.0 if task.shared else 4 * size**3 / 3
    else:
        seconds += LANCZOS * machine.sweep(matrix) * (not task.shared) + 6 * machine.sweep(matrix)
        flops += 16.0 * size**2 * (LANCZOS * (not task.shared) + 6)
    return task.stage("factor", seconds, flops, memory=2 * matrix if size <= SPECTRUM_LIMIT else matrix, kept=matrix)


def _further(task: Task, rows: Rows) -> list[Stage]:
    """What only some settings ask for: the leave-one-out correction, the train gradients."""
    machine, size, n, R = task.machine, rows.size, rows.n, rows.R
    out = []
    if task.curvature.leave_one_out:
        if rows.form == "dual":
            seconds, flops = machine.cholesky(size, F64) + machine.sweep(8 * size * size), size**3 / 3 + size**2 * R
        else:
            seconds, flops = machine.solve(size, n * R, F64), 2.0 * size**2 * n * R
        out.append(task.stage("leverages", seconds, flops, memory=8 * size * size))
    if rows.form == "primal":
        item = 8 * n * size
        out.append(
            task.stage("train gradients", machine.sweep(4 * item * R), 2.0 * n * R * size, memory=2 * item, kept=item)
        )
    elif task.curvature.rows == "sampled":
        seconds, flops = _crossing(rows)(n)
        out.append(task.stage("train gradients", seconds, flops, memory=16 * size * n, kept=8 * size * n))
    return out


def _crossing(rows: Rows) -> Callable[[int], tuple[float, float]]:
    """From a number of queries to the seconds and operations of their right-hand sides."""
    held = rows.held
    caught = rows.unkept * held.block * (len(rows.one.pairs) + 1)
    if rows.form == "primal":
        return lambda count: (count * rows.query, count * rows.query_flops)
    flops = pair_flops(rows.one, rows.asked)
    few = _measured(rows, flops)
    writing, full = writing_seconds(rows.block(few)), min(rows.held.block, rows.n)

    def make(count: int) -> Callable[[], object]:
        small, asked = rows.block(count), rows.question.expand(count, *rows.question.shape[1:])
        return partial(cross_gram, small, small.side, slice(0, count), asked, rows.products)

    inner = extrapolated(make, few, full, 2, rows.query + writing) / full**2

    def cost(count: int) -> tuple[float, float]:
        parts = -(-count // 512)
        seconds = count * rows.query + inner * count * rows.n + parts * (caught * rows.catch + rows.n * writing)
        written = parts * (caught * rows.catch_flops + rows.n * writing_flops(rows.one))
        return seconds, count * rows.query_flops + count * rows.n * flops + written

    return cost


def _solving(task: Task, rows: Rows, count: int, calls: int) -> tuple[float, float]:
    """Solutions of some right-hand sides, their check, and the scores read off them."""
    machine, size, n = task.machine, rows.size, rows.n
    C = task.sampled.train.num_classes if task.curvature.leave_one_out == "loss" else 1
    columns = count * C
    if task.curvature._spectral:
        solve = 2 * machine.product(size, size, columns, F64), 4.0 * size**2 * columns
    else:
        solve = machine.solve(size, columns, F64), 2.0 * size**2 * columns
    check = calls * machine.sweep(8 * size**2) + machine.sweep(40 * size * columns)
    if rows.form == "primal":
        read = machine.product(columns, size, n, F64), 2.0 * size * n * columns
    else:
        read = machine.sweep(16 * size * columns), 2.0 * size * columns
    return solve[0] + check + read[0], solve[1] + read[1]


def _sensitivity(task: Task, rows: Rows, cross: Callable[[int], tuple[float, float]]) -> Stage:
    """Two factors at other dampings, and the sample of queries scored with all three."""
    count, size = task.probed, rows.size
    seconds, flops = cross(count) if task.sampled.m else (0.0, 0.0)
    solved = _solving(task, rows, count, -(-count // TOGETHER))
    seconds, flops = seconds + 3 * solved[0], flops + 3 * solved[1]
    memory = 0
    if not task.curvature._spectral:
        seconds += 2 * (task.machine.cholesky(size, F32) + task.machine.sweep(12 * size**2))
        flops += 2 * size**3 / 3
        memory = 8 * size**2
    return task.stage("neighbours at other dampings", seconds, flops, memory=memory + 32 * size * TOGETHER)


def _scores(task: Task, rows: Rows, cross: Callable[[int], tuple[float, float]]) -> Stage:
    m, own, tile = task.sampled.m, task.on_train, min(task.grid[0], max(task.asked, 1))
    seconds, flops = cross(m) if m and not task.crossed else (0.0, 0.0)
    if own:
        if rows.form == "dual" and task.curvature.rows != "sampled":
            seconds += task.machine.sweep(8 * rows.size * own * (rows.R + 1))
            flops += 2.0 * rows.size * own * rows.R
        else:
            more = cross(own)
            seconds, flops = seconds + more[0], flops + more[1]
    solved = _solving(task, rows, m + own, -(-m // tile) + -(-own // tile))
    if task.curvature.rows == "sampled":
        seconds, flops = seconds + 2 * solved[0], flops + 2 * solved[1]
    memory = 32 * rows.size * tile + 8 * rows.n * tile
    return task.stage("scores", seconds + solved[0], flops + solved[1], memory=memory)
