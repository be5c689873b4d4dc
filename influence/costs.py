"""What each step of an attribution costs: counted operations and bytes, and seconds from timing the step on a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .attribute import Variant
from .calibrate import SLOT, Machine, count_flops, growing, seconds_of
from .curvature import Curvature
from .estimate import Matrix, Stage
from .gradients import Gradients, Part, width
from .hessian import Hessian, hessian_rows
from .layers import Pair
from .products import tangents_at_once
from .rowset import KEPT_SHARE
from .sample import Sampled
from .sensitivity import SAMPLE
from .side import Side
from .stationarity import SAMPLE as STATIONARITY_SAMPLE
from .work import Work

FEW = 4  # examples of the check on batches


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One variant to be estimated."""

    sampled: Sampled
    variant: Variant
    machine: Machine
    grid: tuple[int, int]
    """Rows and columns of a tile of scores."""
    work: Work
    shared: bool
    """Another variant differs in its damping or labels alone: what depends on neither is there already."""
    crossed: bool
    """Another such variant scores the same queries at the same labels, block by block together with this one."""

    @property
    def curvature(self) -> Any:
        """The curvature of the variant."""
        return self.variant.curvature

    @property
    def on_train(self) -> int:
        """Train examples that are scored as queries."""
        return self.sampled.n if self.variant.train_scores or not self.sampled.m else 0

    @property
    def asked(self) -> int:
        """Rows of all score matrices."""
        return self.sampled.m + self.on_train

    @property
    def probed(self) -> int:
        """Queries whose neighbours are compared at other dampings."""
        return min(SAMPLE, self.sampled.m or self.sampled.n)

    def stage(self, name: str, seconds: float, flops: float, *, memory: float = 0, kept: float = 0) -> Stage:
        """A stage of this variant."""
        return Stage(
            name=name,
            variant=self.variant.name,
            seconds=seconds,
            flops=flops,
            memory=int(max(memory, kept)),
            kept=int(kept),
        )


def preparing(sampled: Sampled, variant: str) -> list[Stage]:
    """What happens before any curvature: both sides are read and run, and the weights looked at.

    Args:
        sampled: Both sides.
        variant: Name of the variant that they are prepared for.

    Returns:
        Two stages.
    """
    problem, side, n, m = sampled.problem, sampled.train, sampled.n, sampled.m
    C, F = side.num_classes, 0 if side.features is None else side.features.shape[1]
    passes = 3 * (FEW * 2 * FEW + FEW)  # of one example: every gradient of the check is a pass there and back
    item = torch.finfo(problem.dtype).bits // 8
    kept = (n + m) * (8 * (4 * C + F) + item * F)
    reading = Stage(
        name="read and run both sides",
        variant=variant,
        seconds=n * sampled.read + m * sampled.read_query + (n + m + passes) * sampled.run,
        flops=float((n + m + passes) * sampled.run_flops),
        memory=kept,
        kept=kept,
    )
    few = min(STATIONARITY_SAMPLE, n)
    own = count_flops(lambda: side.gradients(slice(0, 1)))
    bits = 8 if problem.linear else item
    looking = Stage(
        name="stationarity",
        variant=variant,
        seconds=few * gradient_seconds(side, 32) + n * (_slope_seconds(side) + sampled.read),
        flops=float((few + n) * own),
        memory=few * problem.p * bits,
    )
    return [reading, looking]


def gradient_seconds(side: Side, batch: int) -> float:
    """Seconds of an example's own gradient.

    Args:
        side: The example.
        batch: Examples in one pass.

    Returns:
        Seconds an example.
    """
    batch = min(batch, len(side))
    return growing(lambda count: lambda: side.gradients(slice(0, count)), batch) / batch


def _slope_seconds(side: Side) -> float:
    """Seconds an example of the gradient of the objective: a pass there and back."""
    problem = side.problem
    theta = {name: value.clone().requires_grad_() for name, value in problem.start().items()}

    def slope(count: int) -> None:
        rows = slice(0, count)
        with torch.enable_grad():
            loss = problem.losses(problem.logits(theta, side.inputs(rows)), side.target[rows]).sum()
            torch.autograd.grad(loss, list(theta.values()), allow_unused=True)

    batch = min(side.batch_size, len(side))
    return growing(lambda count: lambda: slope(count), batch) / batch


def gradient_dot(task: Task) -> tuple[list[Stage], Matrix]:
    """Scores without a curvature.

    Args:
        task: The variant.

    Returns:
        Its stages, and that nothing is inverted.
    """
    fitted, again = train_gradients(task)
    n, asked = task.sampled.n, task.asked
    gradients = Gradients.of(task.sampled.train, task.work)
    parts = gradients.read(slice(0, 1))
    own = part_seconds(gradients)
    flops = count_flops(lambda: gradients.read(slice(0, 1)))
    across = [number for part in parts for number in _across(part)]
    dtype = parts[0].U.dtype if isinstance(parts[0], Pair) else parts[0].dtype
    seconds = asked * own + again + sum(task.machine.product(asked, number, n, dtype) for number in across)
    scoring = task.stage(
        "scores",
        seconds,
        asked * flops + 2.0 * asked * n * sum(across),
        memory=2 * gradients.each * (min(asked, task.grid[0]) + min(n, gradients.block)),
    )
    what = "no curvature"
    return [*fitted, scoring], Matrix(variant=task.variant.name, form="none", size=0, what=what)


def dense_hessian(task: Task) -> tuple[list[Stage], Matrix]:
    """The true Hessian, all of its eigenvectors, and every gradient.

    Args:
        task: The variant.

    Returns:
        Its stages and its matrix.
    """
    sampled, machine, curvature = task.sampled, task.machine, task.curvature
    assert isinstance(curvature, Hessian)
    p, n = sampled.problem.p, sampled.n
    stages: list[Stage] = []
    if not task.shared:
        batch = min(n, curvature.batch_size or sampled.train.batch_size)
        seconds, flops = _hessian_rows_cost(sampled.train, batch)
        item = 8 if sampled.problem.linear else torch.finfo(sampled.problem.dtype).bits // 8
        running = 2 * tangents_at_once(sampled.problem, batch) * (batch * sampled.outputs + p) * item
        stages.append(task.stage("Hessian", seconds, flops, memory=16 * p * p + running, kept=8 * p * p))
        # tridiagonal form 4/3 p^3, its eigenvectors and the way back together about as much again twice
        decomposed = machine.eigen(p, vectors=True)
        stages.append(task.stage("eigenvectors", decomposed, 4.0 * p**3, memory=32 * p * p, kept=0))
    fitted, again = train_gradients(task)
    f64 = torch.float64
    rows = task.asked + 3 * task.probed
    own = gradient_seconds(sampled.train, sampled.train.batch_size)
    tile = min(task.grid[0], max(task.asked, 1))
    solved = (2 * machine.torch_product(tile, p, p, f64) + machine.torch_product(tile, p, n, f64)) / tile
    scoring = task.stage(
        "scores",
        again + rows * (own + solved) + rows / tile * machine.sweep(24 * n * p),
        rows * (count_flops(lambda: sampled.train.gradients(slice(0, 1))) + 4.0 * p * p + 2.0 * n * p),
        memory=8 * p * (4 * tile + min(n, task.grid[1])),
    )
    matrix = Matrix(variant=task.variant.name, form="primal", size=p, what="the analysed parameters")
    return [*stages, *fitted, scoring], matrix


def _hessian_rows_cost(side: Side, batch: int) -> tuple[float, float]:
    problem, n = side.problem, len(side)
    chunk = tangents_at_once(problem, batch)

    def call(examples: int, rows: int) -> None:
        hessian_rows(problem, side.inputs(slice(0, examples)), side.target[:examples], slice(0, rows))

    taken, few = 0.0, 1
    while taken < SLOT and few < batch:
        few = min(4 * few, batch)
        taken = seconds_of(partial(call, few, 1), 0.2)
    seconds = growing(lambda rows: lambda: call(few, rows), chunk) / (few * chunk)
    flops = count_flops(lambda: call(1, 1))
    return n * problem.p * seconds, float(n * problem.p * flops)


def train_gradients(task: Task) -> tuple[list[Stage], float]:
    """Forming the train gradients.

    Args:
        task: The variant.

    Returns:
        Its stages, and the seconds of forming them again for each block of queries where they are not kept.
    """
    gradients, n = Gradients.of(task.sampled.train, task.work), task.sampled.n
    nbytes = n * gradients.each
    one = part_seconds(gradients) + task.sampled.read
    if nbytes > task.work.budget(task.sampled.problem.device) // KEPT_SHARE:
        return [], n * one * -(-task.asked // task.grid[0])
    if task.shared:
        return [], 0.0
    flops = float(n * count_flops(lambda: gradients.read(slice(0, 1))))
    return [task.stage("train gradients", n * one, flops, memory=2 * nbytes, kept=nbytes)], 0.0


def part_seconds(gradients: Gradients) -> float:
    """Seconds of reading the parts of an example's gradient.

    Args:
        gradients: Of some examples.

    Returns:
        Seconds an example.
    """
    count = min(gradients.block, len(gradients.side))
    return growing(lambda few: lambda: gradients.read(slice(0, few)), count) / count


def _across(part: Part) -> list[int]:
    """Lengths of the inner products that a part of two gradients takes."""
    return [part.U.shape[2], part.D.shape[3]] if isinstance(part, Pair) else [width(part)]


def akin(one: Curvature[Any], others: Sequence[Curvature[Any]]) -> bool:
    """Whether a curvature differs from one of several in its damping at most.

    Args:
        one: The curvature.
        others: Those that were fitted already.

    Returns:
        True where what does not depend on the damping is there already.
    """

    def rest(curvature: Curvature[Any]) -> dict[str, Any]:
        return {**curvature.settings(), "damping": None}

    return any(type(one) is type(other) and rest(one) == rest(other) for other in others)
