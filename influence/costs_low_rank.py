"""What curvatures of low rank and projected rows cost: products with the curvature and draws, timed on a few examples."""

from __future__ import annotations

from functools import partial

import torch

from .calibrate import count_flops, growing
from .costs import Task, gradient_seconds, train_gradients
from .estimate import Matrix, Stage
from .factors import make_factor
from .lanczos import Lanczos
from .low_rank import PROBES, STEPS, LowRank
from .newton import Form
from .projected import Projected
from .projection import Projection
from .row_products import mean_products
from .rowset import block_size, catch_rows, full_rows, make_plan
from .sample import stretched

FEW, TOGETHER = 16, 32  # examples and vectors of a product that is timed
F64 = torch.float64


def low_rank(task: Task) -> tuple[list[Stage], Matrix]:
    """Nystroem and Lanczos.

    Args:
        task: The variant.

    Returns:
        Its stages and its matrix.
    """
    curvature, sampled, machine = task.curvature, task.sampled, task.machine
    assert isinstance(curvature, LowRank)
    p, n = sampled.problem.p, sampled.n
    k = min(curvature.rank, p)
    most = curvature.dimension(p) if isinstance(curvature, Lanczos) else k
    stages: list[Stage] = []
    if not task.shared:
        seconds, flops = _products(task, most + (STEPS * PROBES if k < p else 0), most)
        stages.append(task.stage("products with the curvature", seconds, flops, memory=16 * p * most))
        # three factorisations and products of [p, k], or each vector against all before it, twice
        passes = 4 if isinstance(curvature, Lanczos) else 6
        stages.append(
            task.stage(
                "subspace",
                passes * machine.torch_product(most, p, most, F64) / 2 + machine.eigen(most, vectors=True),
                passes * float(p) * most**2,
                memory=8 * p * (most + 2 * k) if isinstance(curvature, Lanczos) else 32 * p * k,
                kept=8 * p * k,
            )
        )
    fitted, again = train_gradients(task)
    rows, tile = task.asked + 3 * task.probed, min(task.grid[0], max(task.asked, 1))
    dtype = F64 if sampled.problem.linear else sampled.problem.dtype
    solved = (2 * machine.torch_product(tile, p, k, F64) + machine.torch_product(tile, p, n, dtype)) / tile
    own = gradient_seconds(sampled.train, sampled.train.batch_size)
    scoring = task.stage(
        "scores",
        again + rows * (own + solved),
        rows * (count_flops(lambda: sampled.train.gradients(slice(0, 1))) + 4.0 * p * k + 2.0 * n * p),
        memory=8 * p * (4 * tile + min(n, task.grid[1])),
    )
    what = "eigenvectors of the analysed parameters"
    return [*stages, *fitted, scoring], Matrix(variant=task.variant.name, form="primal", size=k, what=what)


def _products(task: Task, columns: int, most: int) -> tuple[float, float]:
    """Seconds and operations of multiplying the curvature with vectors."""
    curvature, sampled = task.curvature, task.sampled
    few, together = min(FEW, sampled.n), min(TOGETHER, most)
    side = stretched(sampled.train, few, few)
    kind = curvature.curvature if isinstance(curvature, Lanczos) else "ggn"
    V = torch.ones(sampled.problem.p, together, dtype=F64, device=sampled.problem.device)

    def call(vectors: int) -> None:
        mean_products(side, kind, columns=most)(V[:, :vectors])

    call(1)  # torch looks at its forward-mode formulas on first use
    seconds = growing(lambda vectors: partial(call, vectors), together)
    share = sampled.n / few * columns / together
    return sampled.n * sampled.read + seconds * share, float(count_flops(lambda: call(together))) * share


def projected(task: Task) -> tuple[list[Stage], Matrix]:
    """Rows through a random projection.

    Args:
        task: The variant.

    Returns:
        Its stages and its matrix.
    """
    curvature, sampled, machine = task.curvature, task.sampled, task.machine
    assert isinstance(curvature, Projected)
    side, n, p, width = sampled.train, sampled.n, sampled.problem.p, curvature.width
    few = stretched(side, min(FEW, n), side.batch_size)
    cotangents = make_factor(curvature.rows, few.logits, few.target, samples=1, seed=0).cotangents
    R = cotangents.shape[1]
    plan = make_plan(few, R, write_all=True)
    one = catch_rows(few, plan, slice(0, 1), cotangents[:1])
    block = block_size(side, one, task.work.budget(side.logits.device), whole=True)
    caught = growing(
        lambda count: lambda: full_rows(catch_rows(few, plan, slice(0, count), cotangents[:count])), len(few)
    ) / len(few)
    piece = Projection.of(min(p, 256), min(width, p) if curvature.draw == "orthogonal" else width, curvature.draw, 0)
    drawn = growing(lambda count: lambda: [*piece.pieces(torch.float32)], 1) * p / piece.p
    item = 8 if sampled.problem.linear else torch.finfo(sampled.problem.dtype).bits // 8
    dtype = F64 if item == 8 else torch.float32
    size = min(n * R, width)
    stages: list[Stage] = []
    if not task.shared:
        sweeps = -(-n // block)
        stages.append(
            task.stage(
                "project the rows",
                n * (sampled.read + caught) + sweeps * drawn + machine.product(n * R, p, width, dtype),
                2.0 * n * R * p * width,
                memory=item * n * R * width + block * R * 2 * p * item,
                kept=item * n * R * width,
            )
        )
        stages.append(
            task.stage(
                "matrix of the projected rows",
                machine.product(size, max(n * R, width), size, F64),
                2.0 * size * size * max(n * R, width),
                memory=16 * size**2,
                kept=8 * size**2,
            )
        )
    stages.append(task.stage("factor", machine.cholesky(size, F64), size**3 / 3, memory=8 * size**2, kept=8 * size**2))
    rows, tile = task.asked + 3 * task.probed, min(task.grid[0], max(task.asked, 1))
    scoring = task.stage(
        "scores",
        rows * (caught + machine.product(tile, p, width, dtype) / tile)
        + -(-rows // tile) * drawn
        + machine.solve(size, rows, F64)
        + machine.product(rows, width, n * (R if width > n * R else 1), F64),
        2.0 * rows * (p * width + size**2 + n * width),
        memory=8 * tile * (p + width + n * R),
    )
    what = (
        f"{n:,} train examples with {R} projected row{'s' if R > 1 else ''} each"
        if size < width
        else "the projected rows"
    )
    form: Form = "dual" if width > n * R else "primal"
    return [*stages, scoring], Matrix(variant=task.variant.name, form=form, size=size, what=what)
