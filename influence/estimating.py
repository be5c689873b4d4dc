"""From a plan of variants to an estimate: who pays for what is shared, what fits, and the mend where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .attribute import Variant
from .calibrate import Machine
from .conjugate_gradient import ConjugateGradient
from .costs import Task, akin, dense_hessian, gradient_dot, preparing
from .costs_head import linear_head
from .costs_kronecker import conjugate_gradient, kronecker
from .costs_low_rank import low_rank, projected
from .costs_newton import gauss_newton
from .estimate import Estimate, Matrix, Stage, shown_bytes
from .gauss_newton import GaussNewton
from .gradient_dot import GradientDot
from .head import LinearHead
from .hessian import Hessian
from .kronecker_curvature import KroneckerCurvature
from .low_rank import LowRank
from .projected import Projected
from .sample import Sampled
from .work import ANY, Work


def estimate_plan(plan: Sequence[tuple[Sampled, Variant]], grid: tuple[int, int], work: Work = ANY) -> Estimate:
    """What a plan of variants will take.

    Args:
        plan: Sampled sides and variants, in the order that they are fitted in.
        grid: Rows and columns of a tile of scores.
        work: The budget of memory.

    Returns:
        The estimate, without the store.
    """
    machine = Machine(plan[0][0].problem.device)
    stages: list[Stage] = []
    matrices: list[Matrix] = []
    notes: list[str] = []
    before: list[tuple[Sampled, Variant]] = []
    for sampled, variant in plan:
        mine = [other for same, other in before if same is sampled]
        if not mine:
            stages += preparing(sampled, variant.name)
        shared = akin(variant.curvature, [other.curvature for other in mine])
        crossed = shared and any(other.query_label == variant.query_label for other in mine)
        task = Task(sampled, variant, machine, grid, work, shared, crossed)
        found, matrix, said = _variant(task)
        stages += found
        matrices.append(matrix)
        notes += said
        before.append((sampled, variant))
    device = plan[0][0].problem.device
    first = plan[0][0]
    estimate = Estimate(
        n=first.n,
        m=first.m,
        p=max(sampled.problem.p for sampled, _ in plan),
        stages=stages,
        matrices=matrices,
        budget=work.room(device),
        notes=notes,
    )
    return estimate if estimate.fits else _with_mend(estimate, plan)


def _variant(task: Task) -> tuple[list[Stage], Matrix, list[str]]:
    curvature = task.curvature
    if isinstance(curvature, LinearHead):
        return linear_head(task)
    if isinstance(curvature, GaussNewton):
        return *gauss_newton(task), []
    if isinstance(curvature, Hessian):
        return *dense_hessian(task), []
    if isinstance(curvature, KroneckerCurvature):
        return *kronecker(task), []
    if isinstance(curvature, ConjugateGradient):
        return conjugate_gradient(task)
    if isinstance(curvature, LowRank):
        return *low_rank(task), []
    if isinstance(curvature, Projected):
        return *projected(task), []
    if isinstance(curvature, GradientDot):
        return *gradient_dot(task), []
    name = type(curvature).__name__
    what = f"{name} is not one of upweight's curvatures, and what it takes is not counted here"
    return [], Matrix(variant=task.variant.name, form="none", size=0, what=what), []


def _with_mend(estimate: Estimate, plan: Sequence[tuple[Sampled, Variant]]) -> Estimate:
    """The same with a sentence on what to do about a peak that does not fit."""
    peak = max(range(len(estimate.stages)), key=estimate.levels().__getitem__)
    name = estimate.stages[peak].variant
    at = next((i for i, (_, variant) in enumerate(plan) if variant.name == name), 0)
    mends = _mends(plan[at][0], plan[at][1].curvature, estimate.matrices[at])
    sentence = (
        f"This does not fit: stage {estimate.stages[peak].name!r} takes {shown_bytes(estimate.memory)}, and there are "
        f"{shown_bytes(estimate.budget)}; {', or '.join(mends)}."
    )
    return Estimate(
        n=estimate.n,
        m=estimate.m,
        p=estimate.p,
        stages=estimate.stages,
        matrices=estimate.matrices,
        budget=estimate.budget,
        notes=[sentence, *estimate.notes],
    )


def _mends(sampled: Sampled, curvature: Any, matrix: Matrix) -> list[str]:
    n, problem = sampled.n, sampled.problem
    out = []
    if isinstance(curvature, GaussNewton) and matrix.form == "dual" and matrix.size > n:
        out.append(f"take rows='margin', whose matrix has {n:,} rows ({shown_bytes(16 * n * n)} with its factor)")
    if isinstance(curvature, (Hessian, LinearHead)) and problem.loss is None and n < matrix.size:
        out.append(f"take GaussNewton(rows='margin'), whose matrix has {n:,} rows")
    if isinstance(curvature, LowRank):
        out.append("lower the rank")
    if isinstance(curvature, Projected):
        out.append("lower the width")
    if not problem.linear:
        out.append("analyse fewer parameters")
    return [*out, "take fewer train examples, or more memory"]
