"""The last linear layer in closed form: no autograd, one matrix product a pair of contrasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .rows import contrasts, hessian_factor
from .side import Side
from .solve import Eigen, Inversion, eigendecompose
from .spectrum import Spectrum


@dataclass(frozen=True, slots=True, eq=False)
class HeadState:
    """The factored curvature of a head, in contrast space and on the row space of the features."""

    eigen: Eigen
    rule: Inversion
    E: Float[Tensor, "C C-1"]
    """Contrasts: what is left of the logits when their common shift is taken out."""
    V: Float[Tensor, "F+1 k"]
    """Orthonormal basis of the row space of the train features, the constant one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """Exact curvature of softmax cross-entropy in the last linear layer; there the Hessian is the Gauss-Newton matrix.

    With phi~ = [phi; 1] the mean Hessian is (1/n) sum_i S_i (x) phi~_i phi~_i^T. Every S_i is blind to a shift of all logits,
    and every phi~_i lies in the row space of the features, so the pseudo-inverse (and a uniformly damped inverse) is taken
    exactly in a space of (C-1) k dimensions, k the rank of the features. float64 throughout.
    """

    unit: ClassVar[str] = "nats per unit weight"

    damping: float = 0.0
    """Added to every eigenvalue of the mean Hessian; exact when it is the L2 penalty that the head was fitted with."""
    rcond: float | None = None
    """Cutoff relative to the largest eigenvalue; None: size times rounding unit, and none when damped."""

    def __post_init__(self) -> None:
        Inversion(damping=self.damping, rcond=self.rcond)

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": "LinearHead", **asdict(self)}

    def fit(self, train: Side) -> HeadState:
        """Assemble and decompose the mean Hessian of the head.

        Args:
            train: The train set, examined.

        Returns:
            The eigendecomposition in contrast space.

        Raises:
            UsageError: Parameters beyond the head are analysed, or the loss is not cross-entropy.
        """
        if not train.problem.linear:
            raise UsageError(
                "LinearHead holds for the weight and bias of the last linear layer alone; with other `parameters` use "
                "Hessian() or GradientDot()."
            )
        if train.problem.loss is not None:
            raise UsageError("LinearHead is the closed form of cross-entropy; with another loss use Hessian().")
        E = contrasts(train.num_classes, train.logits.device)
        phi = augmented(train, slice(0, len(train)))
        V = row_space(phi)
        root = hessian_factor(train.logits, train.target) @ E  # [n, C-1, C-1]; root^T root = E^T S E
        S = root.mT @ root
        # the Gram is accumulated in float64, but features that came out of float32 hold no more digits than that
        eps = max(torch.finfo(torch.float64).eps, torch.finfo(train.problem.dtype).eps ** 2)
        return HeadState(eigendecompose(head_hessian(S, phi @ V), eps), self._rule(), E, V)

    def solve(self, state: HeadState, queries: Side, rows: slice) -> Float[Tensor, "b D"]:
        """H'^+ times the query gradients, in contrast space.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients [b, D], D = (C-1) k.
        """
        V = state.eigen.V
        G = contrast_gradients(state, queries, rows)
        return ((G @ V) * state.eigen.inverse(state.rule)) @ V.T

    def scores(
        self, state: HeadState, solved: Float[Tensor, "b D"], train: Side, columns: slice
    ) -> Float[Tensor, "b c"]:
        """Solved queries against a block of train examples.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c], nats per unit weight.
        """
        return solved @ contrast_gradients(state, train, columns).T

    def spectrum(self, state: HeadState) -> Spectrum:
        """Facts of the mean Hessian; its (C-1) k eigenvalues are the ones that can differ from zero.

        Args:
            state: What `fit` gave.

        Returns:
            The facts.
        """
        return state.eigen.spectrum(state.rule)

    def warnings(self, state: HeadState) -> list[str]:
        """There is nothing to warn of that the spectrum does not show.

        Args:
            state: What `fit` gave.

        Returns:
            An empty list.
        """
        return []

    def neighbours(self, state: HeadState) -> Mapping[str, HeadState]:
        """The same decomposition at a tenth and at ten times the damping or cutoff.

        Args:
            state: What `fit` gave.

        Returns:
            Two states.
        """
        cutoff = state.eigen.cutoff(state.rule)
        return {f"{factor:g}x": replace(state, rule=state.rule.scaled(factor, cutoff)) for factor in (0.1, 10.0)}

    def _rule(self) -> Inversion:
        return Inversion(damping=self.damping, rcond=self.rcond)


def augmented(side: Side, rows: slice) -> Float[Tensor, "b F+1"]:
    """Features of the analysed part of the head: phi for its weight, a constant one for its bias.

    Args:
        side: Train set or queries.
        rows: Which examples.

    Returns:
        [phi; 1], or the one of the two that is analysed, float64.
    """
    assert side.features is not None  # a linear problem keeps its features
    phi, problem = side.features[rows], side.problem
    one = phi.new_ones(len(phi), 1)
    parts = [part for name, part in (("weight", phi), ("bias", one)) if problem.full_name(name) in problem.theta]
    return torch.cat(parts, dim=1)


def row_space(phi: Float[Tensor, "n F+1"]) -> Float[Tensor, "F+1 k"]:
    """Orthonormal basis of the space that the train features span.

    Args:
        phi: Augmented features of the train set.

    Returns:
        Basis in columns; directions that are exactly dead or duplicated are gone.
    """
    _, s, Vh = torch.linalg.svd(phi, full_matrices=False)
    keep = s > max(phi.shape) * torch.finfo(phi.dtype).eps * s[0]
    basis: Tensor = Vh[keep].T.contiguous()
    return basis


def head_hessian(S: Float[Tensor, "n c c"], psi: Float[Tensor, "n k"]) -> Float[Tensor, "D D"]:
    """(1/n) sum_i S_i (x) psi_i psi_i^T.

    Args:
        S: Softmax Hessians in contrast space.
        psi: Features on their row space.

    Returns:
        The mean Hessian, D = c k, contrasts outermost.
    """
    n, c, _ = S.shape
    k = psi.shape[1]
    H = psi.new_empty(c, k, c, k)
    for a in range(c):
        for b in range(a + 1):
            block = psi.T @ (S[:, a, b, None] * psi) / n
            H[a, :, b, :] = block
            H[b, :, a, :] = block.T
    return H.view(c * k, c * k)


def contrast_gradients(state: HeadState, side: Side, rows: slice) -> Float[Tensor, "b D"]:
    """Gradients of the head's loss, residual (x) features, in the coordinates of the curvature.

    Args:
        state: Contrasts and row space.
        side: Train set or queries.
        rows: Which examples.

    Returns:
        Gradients [b, D]; what lies outside the row space of the train features scores nothing and is left out.
    """
    psi = augmented(side, rows) @ state.V
    r = side.residual[rows] @ state.E
    return (r[:, :, None] * psi[:, None, :]).flatten(1)
