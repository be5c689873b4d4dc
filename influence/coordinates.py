"""Scores in the eigenbasis of a curvature: one factorisation serves every damping and every cutoff."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import product
from .curvature import Curvature
from .damping import automatic, chosen_damping, each
from .gauss_newton import GaussNewton
from .head import LinearHead, augmented
from .head_features import row_space
from .head_hessian import softmax_hessian
from .hessian import Hessian
from .rowset import smaller_form
from .side import Side
from .solve import Eigen, Inversion, eigendecompose
from .work import ANY, Work

LARGEST = 8_000  # rows of a matrix up to which its eigenvectors cost less than a Cholesky factor for every damping
QUERY_BYTES = 2**28  # of right-hand sides at once


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """score[t, i] = sum_k train[k, i] f(e_k) queries[k, t], f the inverse that a damping or cutoff makes of an eigenvalue."""

    eigen: Eigen
    """Eigenvalues alone."""
    train: Float[Tensor, "r n"]
    queries: Float[Tensor, "r m"]
    given: Inversion
    """As the curvature itself inverts."""

    @property
    def lambda_max(self) -> float:
        """Largest eigenvalue."""
        return float(self.eigen.lam[0])

    def sums(self, weights: Float[Tensor, "n J"]) -> Float[Tensor, "r J"]:
        """Weighted sums of train examples, from which their scores with all queries are r J m operations away.

        Args:
            weights: Of the examples, one column a sum.

        Returns:
            The sums.
        """
        return product(self.train, weights)

    def scores(self, sums: Float[Tensor, "r J"], rule: Inversion) -> Float[Tensor, "J m"]:
        """Scores of sums of train examples.

        Args:
            sums: What `sums` gave.
            rule: Damping and cutoff.

        Returns:
            Nats per unit weight.
        """
        return product(sums.T, self.eigen.inverse(rule)[:, None] * self.queries)


def coordinates(curvature: Curvature[Any], train: Side, queries: Side, work: Work = ANY) -> Coordinates | None:
    """Decompose a curvature; a leave-one-out correction is left out.

    Args:
        curvature: Any.
        train: The train set.
        queries: The queries.
        work: Memory, keeper of tiles, whom to tell.

    Returns:
        The coordinates; None of a curvature that has none or is too large.
    """
    if isinstance(curvature, GaussNewton):
        return _newton(curvature, train, queries, work)
    if isinstance(curvature, LinearHead):
        return _head(curvature, train, queries)
    if isinstance(curvature, Hessian) and train.problem.p <= LARGEST:
        return _hessian(curvature, train, queries)
    return None


def _newton(curvature: GaussNewton, train: Side, queries: Side, work: Work) -> Coordinates | None:
    n, R = len(train), {"logits": train.num_classes - 1, "sampled": curvature.samples}.get(curvature.rows, 1)
    form = smaller_form(train.problem, n, R) if curvature.form == "auto" else curvature.form
    size = train.problem.p if form == "primal" else n * R
    if size > LARGEST or (form == "dual" and curvature.rows == "sampled"):
        return None
    # without damping: what is cut at must be accumulated in float64
    state = replace(curvature, damping=0.0, rcond=None, leave_one_out=False, precision="float32").fit(train, work=work)
    base, eigen = state.base, state.eigen
    assert eigen is not None  # of an undamped fit it is always there
    V, weights = eigen.V, base.factor.weights
    if form == "primal":
        assert state.train is not None  # formed by `fit` for the primal form
        own = product(V.T, state.train.T)
    else:
        assert weights is not None  # sampled rows were sent away
        own = n**0.5 * torch.einsum("nrk,nr->kn", V.view(n, R, -1), weights)
    asked = torch.cat([product(V.T, base.right_side(queries, rows)) for rows in _blocks(queries, size)], dim=1)
    damping = chosen_damping(
        each(curvature.damping)[0], float(eigen.lam[0]), train.problem.weight_decay, head=train.problem.linear
    )
    return _bare(eigen, own, asked, Inversion(damping=damping, rcond=curvature.rcond))


def _head(curvature: LinearHead, train: Side, queries: Side) -> Coordinates | None:
    phi = augmented(train, slice(0, len(train)))
    basis = row_space(phi)
    hessian = softmax_hessian(train.logits, phi if basis is None else product(phi, basis))
    if hessian.size > LARGEST:
        return None
    eps = max(torch.finfo(torch.float64).eps, torch.finfo(train.problem.dtype).eps ** 2)  # as `fit_head` has it
    eigen = eigendecompose(hessian.dense_in_contrasts(hessian.assemble()), eps)
    back = torch.linalg.inv(hessian.to_contrasts)

    def inside(side: Side, rows: slice) -> Tensor:
        psi = augmented(side, rows)
        psi = psi if basis is None else psi @ basis
        mixed = back.T @ side.residual[rows].T[hessian.keep]  # the axis of the logits in orthonormal contrasts
        return product(eigen.V.T, (mixed[:, None, :] * psi.T).flatten(0, 1))

    own, asked = (
        torch.cat([inside(side, rows) for rows in _blocks(side, hessian.size)], dim=1) for side in (train, queries)
    )
    damping = each(curvature.damping)[0]
    if damping == "auto":  # as `LinearHead` has it
        damping = automatic(float(eigen.lam[0]), train.problem.weight_decay, head=True)
    return _bare(eigen, own, asked, Inversion(damping=damping, rcond=curvature.rcond))


def _hessian(curvature: Hessian, train: Side, queries: Side) -> Coordinates:
    state = replace(curvature, damping=each(curvature.damping)[0]).fit(train)
    V = state.eigen.V
    own, asked = (
        torch.cat([product(V.T, side.gradients(rows).double().T) for rows in _blocks(side, len(V))], dim=1)
        for side in (train, queries)
    )
    return _bare(state.eigen, own, asked, state.rule)


def _bare(eigen: Eigen, own: Tensor, asked: Tensor, given: Inversion) -> Coordinates:
    return Coordinates(replace(eigen, V=eigen.V.new_empty(0, 0)), own, asked, given)


def _blocks(side: Side, size: int) -> list[slice]:
    step = max(1, QUERY_BYTES // (8 * size))
    return [slice(start, min(start + step, len(side))) for start in range(0, len(side), step)]
