"""What Kronecker factors and conjugate gradients cost: sweeps over the train set, bases, and products for each query."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .calibrate import count_flops, growing
from .conjugate_gradient import ConjugateGradient
from .costs import Task, gradient_seconds, train_gradients
from .damped import STEPS, WIDTH
from .estimate import Matrix, Stage
from .factors import make_factor
from .kronecker import kronecker_plan, layout, taken_apart, working_type
from .kronecker_curvature import KroneckerCurvature
from .row_products import mean_products
from .rowset import KEPT_SHARE, catch_rows
from .sample import stretched

FEW, TOGETHER = 16, 32  # examples and vectors of what is timed
ASSUMED = 20  # steps of a system, which nobody knows beforehand


def kronecker(task: Task) -> tuple[list[Stage], Matrix]:
    """K-FAC and EK-FAC.

    Args:
        task: The variant.

    Returns:
        Its stages and its matrix.
    """
    curvature, sampled, machine = task.curvature, task.sampled, task.machine
    assert isinstance(curvature, KroneckerCurvature)
    n, p, sweeps = sampled.n, sampled.problem.p, 2 if curvature.kind == "ekfac" else 1
    few = stretched(sampled.train, min(FEW, n), sampled.train.batch_size)
    plan, _ = kronecker_plan(few, skip=curvature.others == "skip")
    blocks = layout(sampled.problem, plan)
    factor = make_factor(curvature.rows, few.logits, few.target, samples=curvature.samples, seed=0)
    cotangents = factor.cotangents
    caught = growing(lambda count: lambda: catch_rows(few, plan, slice(0, count), cotangents[:count]), len(few)) / len(
        few
    )
    dtype = working_type(sampled.problem)
    item = torch.finfo(dtype).bits // 8
    R, multiplied, turned, bases, held, each = cotangents.shape[1], 0.0, 0.0, 0.0, 8 * p, 0
    for block, U, D in taken_apart(catch_rows(few, plan, slice(0, 1), cotangents[:1]), blocks):
        (outs, ins), T = block.place.shape, U.shape[1]
        both = machine.product(n * T, ins, ins, dtype) + machine.product(n * T * D.shape[1], outs, outs, dtype)
        squared = machine.product(n * T * (1 if T == 1 else D.shape[1]), ins, outs, dtype)
        multiplied += both + (both + squared if sweeps == 2 else 0.0)
        pair = block.map and T == 1  # never written out
        turned += both / D.shape[1] + (0.0 if pair else machine.product(n * T, ins, outs, dtype))
        each += item * (ins + outs if pair else block.size)
        bases += machine.eigen(ins, vectors=True) + machine.eigen(outs, vectors=True)
        held += (8 + item) * (ins**2 + outs**2)
    own = gradient_seconds(sampled.train, sampled.train.batch_size)
    stages: list[Stage] = []
    kept = n * each if n * each <= task.work.budget(sampled.problem.device) // KEPT_SHARE else 0
    once = n * (own + sampled.read) + turned
    if not task.shared:
        stages.append(
            task.stage(
                "Kronecker factors",
                sweeps * n * (caught + sampled.read) + multiplied + bases,
                float(n * count_flops(lambda: catch_rows(few, plan, slice(0, 1), cotangents[:1]))),
                memory=held + n * R * item * sampled.outputs,
                kept=held,
            )
        )
        stages.append(task.stage("train gradients", once, 0.0, memory=2 * kept, kept=kept))
    rows, tile = task.asked + 3 * task.probed, min(task.grid[0], max(task.asked, 1))
    again = 0.0 if kept else once * -(-task.asked // task.grid[0])
    scoring = task.stage(
        "scores",
        again + rows * (own + turned / n + machine.product(tile, p, n, dtype) / tile),
        2.0 * rows * n * p,
        memory=3 * item * p * tile + each * min(n, task.grid[1]),
    )
    what = "the analysed parameters, a product of two small matrices for each layer"
    return [*stages, scoring], Matrix(variant=task.variant.name, form="primal", size=p, what=what)


def conjugate_gradient(task: Task) -> tuple[list[Stage], Matrix, list[str]]:
    """Conjugate gradients, at an assumed number of steps.

    Args:
        task: The variant.

    Returns:
        Its stages, that nothing is inverted, and what the number of steps was taken for.
    """
    curvature, sampled, machine = task.curvature, task.sampled, task.machine
    assert isinstance(curvature, ConjugateGradient)
    p, n = sampled.problem.p, sampled.n
    together = min(TOGETHER, p)
    V = torch.ones(p, together, dtype=torch.float64, device=sampled.problem.device)

    def products(examples: int) -> Callable[[], Tensor]:
        side = stretched(sampled.train, examples, sampled.train.batch_size)
        return partial(mean_products(side, curvature.curvature, columns=128, sweeps=ASSUMED), V)

    # torch looks at its forward-mode formulas on first use, and rows are caught once
    seconds = growing(products, n) / together
    flops = float(count_flops(products(1))) * n / together
    stages: list[Stage] = []
    if not task.shared:
        columns = WIDTH * STEPS + (min(curvature.rank, p) if curvature.precondition == "nystroem" else 0)
        stages.append(
            task.stage(
                "preconditioner",
                n * sampled.read + columns * seconds,
                columns * flops,
                memory=16 * p * columns,
                kept=8 * p * min(curvature.rank, p),
            )
        )
    fitted, again = train_gradients(task)
    tile = min(task.grid[0], max(task.asked, 1))
    scored = machine.product(tile, p, n, working_type(sampled.problem)) / tile
    solving = task.stage(
        "solve and score",
        again + task.asked * (ASSUMED * seconds + scored),
        task.asked * (ASSUMED * flops + 2.0 * n * p),
        memory=48 * p * tile,
    )
    note = f"Conjugate gradients are counted at {ASSUMED} steps a query; how many they take is not known beforehand."
    what = "a linear system for each query"
    return [*stages, *fitted, solving], Matrix(variant=task.variant.name, form="none", size=0, what=what), [note]
