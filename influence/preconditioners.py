"""Approximate inverses that make conjugate gradients short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import product
from .factors import make_factor
from .kronecker import KroneckerMatrix
from .kronecker_fit import fit_kronecker
from .nystroem import independent_vectors, nystroem
from .row_products import Operator, mean_products
from .side import Side
from .work import Work

Precondition = Literal["nystroem", "ekfac", "diagonal", "none"]
PRECONDITIONERS: tuple[Precondition, ...] = ("nystroem", "ekfac", "diagonal", "none")


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """The leading part of the Gauss-Newton matrix, and its smallest kept eigenvalue in every other direction."""

    lam: Float[Tensor, " r"]
    """Eigenvalues, descending."""
    V: Float[Tensor, "p r"]
    """Orthonormal vectors."""

    def inverse(self, vectors: Float[Tensor, "k p"], damping: float) -> Float[Tensor, "k p"]:
        """(this + damping I)^-1 times vectors, up to a factor.

        Args:
            vectors: In rows, float64.
            damping: Positive.

        Returns:
            The products.
        """
        scale = (self.lam[-1] + damping) / (self.lam + damping) - 1  # 0 in the last direction, as in all others
        return vectors + product(product(vectors, self.V) * scale, self.V.T)


def fit_preconditioner(
    train: Side, kind: Precondition, rank: int, work: Work, ggn: Operator | None = None
) -> KroneckerMatrix | Sketch | None:
    """What a curvature is preconditioned with; it does not depend on the damping.

    Args:
        train: The train set, examined.
        kind: Which one.
        rank: Directions of "nystroem".
        work: Memory, keeper of tiles, whom to tell.
        ggn: Products with the Gauss-Newton matrix, where they are at hand.

    Returns:
        The approximate inverse; None for "none".

    Raises:
        UsageError: The loss is not cross-entropy, whose Gauss-Newton matrix all of them approximate.
    """
    if kind == "none":
        return None
    problem = train.problem
    if problem.loss is not None:
        raise UsageError(
            f"The preconditioner {kind} is made for cross-entropy; with another loss take precondition='none'."
        )
    if kind != "nystroem":
        factor = make_factor("logits", train.logits, train.target, samples=1, seed=0)
        return fit_kronecker(train, factor, kind, "diagonal" if kind == "diagonal" else "either", work)
    rank = min(rank, problem.p)
    W = independent_vectors(problem.p, rank, torch.Generator().manual_seed(0), train.logits.device)
    eps = torch.finfo(torch.float64 if problem.linear else problem.dtype).eps
    ggn = mean_products(train, columns=rank, work=work) if ggn is None else ggn
    return Sketch(*nystroem(ggn(W), W, eps))
