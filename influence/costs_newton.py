"""What the exact Gauss-Newton inverse costs, in the form that it will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from .attribute import RUN
from .calibrate import count_flops, extrapolated, growing, seconds_of
from .costs import Task
from .estimate import Matrix, Stage
from .factors import make_factor
from .gauss_newton import GaussNewton
from .gram import cross_gram, gram
from .layers import Caught
from .newton import SPECTRUM_LIMIT
from .rowset import RowSet, catch_rows, make_plan, row_set, smaller_form
from .sample import Sampled, stretched

LANCZOS = 8  # applications to find the largest eigenvalue, as a rule
MEASURED_FLOPS, MEASURED_BYTES = 6e9, 2**27  # of inner products that are timed
F32, F64 = torch.float32, torch.float64


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a train set that is only sampled."""

    sampled: Sampled
    held: RowSet
    """As long as the real ones; never caught as a whole."""
    form: Literal["primal", "dual"]
    products: Any
    one: Caught
    """Of one example."""
    catch: float
    """Seconds an example, its reading included."""
    catch_flops: float
    query: float
    """Likewise for a query."""
    query_flops: float
    question: Tensor
    """Cotangents of a query: its loss gradient, or the derivative of every logit [1, R', C]."""
    planned: float
    """Seconds that the plan itself took."""

    @property
    def n(self) -> int:
        """Train examples."""
        return self.sampled.n

    @property
    def R(self) -> int:
        """Rows an example."""
        return self.held.R

    @property
    def asked(self) -> int:
        """Rows of a query."""
        return self.question.shape[1]

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return self.n * self.R if self.form == "dual" else self.sampled.problem.p

    @property
    def unkept(self) -> int:
        """Blocks that memory does not hold, and that are caught again whenever they are needed."""
        held = self.held
        kept = int(held.keep // max(1, self.one.nbytes * held.block))
        return max(0, len(held.blocks) - kept)

    @property
    def nbytes(self) -> int:
        """Bytes of caught rows that are kept."""
        return min(self.held.keep, self.n * self.one.nbytes)

    def block(self, examples: int, blocks: int = 1) -> RowSet:
        """A few of the rows, caught already."""
        held, side = self.held, stretched(self.held.side, examples * blocks, self.held.side.batch_size)
        cotangents = held.cotangents[:1].expand(examples * blocks, *held.cotangents.shape[1:])
        few = RowSet(side, held.plan, cotangents, examples, held.step, 2**62)
        for block in few.blocks:
            few.caught(block)
        return few


def sample_rows(task: Task) -> Rows:
    """Plan the rows of a train set, and catch a few.

    Args:
        task: The variant.

    Returns:
        Their plan, and what an example costs.
    """
    sampled, curvature = task.sampled, task.curvature
    side, n = sampled.train, sampled.n
    one = slice(0, 1)
    factor = make_factor(
        curvature.rows, side.logits[one], side.target[one], samples=curvature.samples, seed=curvature.seed
    )
    R, C = factor.cotangents.shape[1:]
    form = smaller_form(sampled.problem, n, R) if curvature.form == "auto" else curvature.form
    cotangents = torch.linspace(-1, 1, R * C, dtype=F64, device=side.logits.device).view(1, R, C).expand(n, R, C)
    start = perf_counter()
    plan = make_plan(side, R, write_all=form == "primal")
    planned = perf_counter() - start
    held = row_set(side, plan, cotangents, task.work, whole=form == "primal")
    products = F64 if curvature._spectral else curvature.precision
    columns = torch.eye(C, dtype=F64, device=side.logits.device)[None] if curvature.leave_one_out == "loss" else None
    asked = side.residual[one][:, None, :] if columns is None else columns
    own = [
        _catching(held, cotangents, sampled.read),
        _catching(held, asked.expand(n, *asked.shape[1:]), sampled.read_query),
    ]
    caught = catch_rows(side, plan, one, cotangents[one], held.step)
    return Rows(sampled, held, form, products, caught, *own[0], *own[1], asked, planned)


def _catching(held: RowSet, cotangents: Tensor, read: float) -> tuple[float, float]:
    """Seconds and operations of catching an example's rows."""
    side, full = held.side, min(held.step, len(held.side))

    def call(count: int) -> Caught:
        return catch_rows(side, held.plan, slice(0, count), cotangents[:count], held.step)

    seconds = growing(lambda count: lambda: call(count), full) / full
    return seconds + read, float(count_flops(lambda: call(1)))


def pair_flops(one: Caught, R: int) -> float:
    """Operations of the inner products of one example's rows with those of another.

    Args:
        one: The rows of one example.
        R: Rows of the other.

    Returns:
        Two for each multiplication with its addition.
    """
    return sum(_layers(one, R))


def _layers(one: Caught, R: int) -> tuple[float, float]:
    """The same for layers whose products with themselves take half the operations, and for those where they do not."""
    halved, whole = 2.0 * one.R * R * one.written.shape[1], 0.0
    for pair in one.pairs:
        _, T, inputs = pair.U.shape
        out = pair.D.shape[3]
        if not pair.ghost:
            halved += 2.0 * one.R * R * inputs * out
        elif T == 1:
            halved += 2.0 * (inputs + one.R * R * out)
        else:
            whole += 2.0 * T * T * (inputs + one.R * R * (out + 1))
    return halved, whole


def writing_flops(one: Caught) -> float:
    """Operations of writing out the rows of an example, where that is done for every product.

    Args:
        one: Its rows.

    Returns:
        Two for each multiplication with its addition.
    """
    sizes = [(pair.U.shape[1], pair.width) for pair in one.pairs if not pair.ghost]
    return sum(2.0 * one.R * T * width for T, width in sizes if T > 1)


def writing_seconds(rows: RowSet) -> float:
    """Seconds of the same, an example.

    Args:
        rows: One block, caught already.

    Returns:
        Seconds.
    """
    caught = rows.caught(rows.blocks[0])
    pairs = [pair for pair in caught.pairs if not pair.ghost]
    return seconds_of(lambda: [pair.rows() for pair in pairs], 0.5) / caught.b if pairs else 0.0


def gauss_newton(task: Task) -> tuple[list[Stage], Matrix]:
    """The stages of one variant.

    Args:
        task: The variant.

    Returns:
        Stages, and the matrix that is inverted.
    """
    assert isinstance(task.curvature, GaussNewton)
    rows = sample_rows(task)
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
    halved, alike = _layers(rows.one, rows.R)
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
    solved = _solving(task, rows, count, -(-count // RUN))
    seconds, flops = seconds + 3 * solved[0], flops + 3 * solved[1]
    memory = 0
    if not task.curvature._spectral:
        seconds += 2 * (task.machine.cholesky(size, F32) + task.machine.sweep(12 * size**2))
        flops += 2 * size**3 / 3
        memory = 8 * size**2
    return task.stage("neighbours at other dampings", seconds, flops, memory=memory + 32 * size * RUN)


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
