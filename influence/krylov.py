"""Conjugate gradients for many right-hand sides at once, each with its own steps; none is returned unsolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import SolveError

Operator = Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]]


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What solved a block of systems."""

    X: Float[Tensor, "k p"]
    """In rows, float64."""
    steps: int
    """Of the row that took longest."""
    residual: float
    """Largest |b - A x| / |b|, of the solutions themselves."""


def conjugate_gradients(
    operator: Operator, B: Float[Tensor, "k p"], inverse: Operator, *, rtol: float, max_steps: int
) -> Solution:
    """Solve A x = b for every row.

    A row that has converged takes no further part. What counts is the residual of the solution, not the one that the steps
    carry along: where rounding has parted them the steps begin again from the solution.

    Args:
        operator: X -> A X, for rows, in any number; symmetric, its results float64.
        B: Right-hand sides in rows, float64.
        inverse: An approximate inverse of A, symmetric and positive definite.
        rtol: Residual to reach, relative to b.
        max_steps: Steps of any row.

    Returns:
        The solutions.

    Raises:
        SolveError: A is not positive, the steps are used up, or rounding keeps a residual from falling further.
    """
    size = B.norm(dim=1)
    X, R = torch.zeros_like(B), B.clone()
    left, before = (size > 0).nonzero()[:, 0], torch.ones_like(size)
    steps = 0
    while len(left):
        X[left], taken = _steps(operator, X[left], R[left], inverse, rtol * size[left], max_steps - steps)
        steps += taken
        R[left] = B[left] - operator(X[left])
        now = R.norm(dim=1) / torch.where(size > 0, size, 1.0)
        left = (~(now <= rtol)).nonzero()[:, 0]  # NaN is not solved either
        if len(left):
            _check_progress(now[left], before[left], steps, max_steps, rtol)
        before = now
    residual = float((R.norm(dim=1) / torch.where(size > 0, size, 1.0)).max()) if steps else 0.0
    return Solution(X, steps, residual)


def _check_progress(now: Tensor, before: Tensor, steps: int, max_steps: int, rtol: float) -> None:
    worst = float(now.max())
    if steps >= max_steps:
        raise SolveError(
            f"Conjugate gradients took {steps} steps and left a relative residual of {worst:.1e}, where {rtol:g} was asked for; "
            "raise max_steps or the damping."
        )
    if not bool((now <= before / 2).all()):
        raise SolveError(
            f"Conjugate gradients came to a relative residual of {worst:.1e} in {steps} steps, and rounding keeps it above the "
            f"{rtol:g} that was asked for; raise rtol or the damping, or compute in float64 (dtype=torch.float64)."
        )


def _steps(
    operator: Operator, X: Tensor, R: Tensor, inverse: Operator, wanted: Tensor, most: int
) -> tuple[Tensor, int]:
    """Steps from X with residual R until every row's residual is as small as wanted."""
    solved = X.clone()
    at = torch.arange(len(X), device=X.device)
    Z = inverse(R)
    P, rz = Z, (R * Z).sum(1)
    for step in range(1, most + 1):
        AP = operator(P)
        curved = (P * AP).sum(1)
        _check_positive(curved, P)
        alpha = (rz / curved)[:, None]
        solved[at] += alpha * P
        R = R - alpha * AP
        going = ~(R.norm(dim=1) <= wanted[at])
        if not bool(going.any()):
            return solved, step
        if not bool(going.all()):
            at, R, P, rz = at[going], R[going], P[going], rz[going]
        Z = inverse(R)
        now = (R * Z).sum(1)
        P = Z + (now / rz)[:, None] * P
        rz = now
    return solved, most


def _check_positive(curved: Tensor, P: Tensor) -> None:
    if bool((curved > 0).all()):
        return
    at = int(curved.argmin())
    value = float(curved[at] / P[at].square().sum())
    if value != value:
        raise SolveError("Conjugate gradients met NaN; look for such values in the weights or the data.")
    raise SolveError(
        f"The damped curvature is not positive: along one direction it is {value:.3g}. Raise the damping by more than "
        f"{-value:.3g}, or take curvature='ggn', which is never negative."
    )
