"""The last linear layer in closed form: no autograd, one matrix product a pair of contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import in_units, product
from .damping import checked, each, single
from .head_features import row_space
from .head_hessian import softmax_hessian
from .head_inverse import Inverse, invert
from .side import Side
from .solve import Inversion
from .spectrum import Spectrum
from .work import ANY, Work


@dataclass(frozen=True, slots=True, eq=False)
class HeadState:
    """The factored curvature of a head, in all logits but one and on the row space of the features."""

    inverse: Inverse
    residual: Float[Tensor, "n C"]
    """Gradients of the train losses in the logits."""
    V: Float[Tensor, "F+1 k"] | None
    """Orthonormal basis of the row space of the train features, the constant one included; None when it is the whole space."""

    def on_row_space(self, phi: Float[Tensor, "b F+1"]) -> Float[Tensor, "b k"]:
        """Features in the coordinates of the curvature.

        Args:
            phi: Augmented features.

        Returns:
            psi; what lies outside the row space of the train features scores nothing and is left out.
        """
        return phi if self.V is None else phi @ self.V


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """Exact curvature of softmax cross-entropy in the last linear layer; there the Hessian is the Gauss-Newton matrix.

    With phi~ = [phi; 1] the mean Hessian is (1/n) sum_i S_i (x) phi~_i phi~_i^T. Every S_i is blind to a shift of all logits,
    and every phi~_i lies in the row space of the features, so the pseudo-inverse (and a uniformly damped inverse) is taken
    exactly in a space of (C-1) k dimensions, k the rank of the features.

    Where nothing is cut a Cholesky factor serves; otherwise, and where an estimate leaves doubt, all eigenvectors. Facts of a
    matrix beyond 2,500 rows come from a few steps of Lanczos, and how much its damping matters is not told. A float64 problem
    is float64 throughout: a float32 factor refined to 1e-10 saves memory, but no time. A float32 problem of such a size and of
    moderate condition has a float32 factor, and solutions that are refined where a sample of them asks for it.
    """

    unit: ClassVar[str] = "nats per unit weight"

    damping: float | Sequence[float] = 0.0
    """Added to every eigenvalue of the mean Hessian; exact when it is the L2 penalty that the head was fitted with. Of a list
    `attribute` gives the scores of every entry, the first as the main ones."""
    rcond: float | None = None
    """Cutoff relative to the largest eigenvalue; None: size times rounding unit, and none when damped."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", checked(self.damping))
        for damping in each(self.damping):
            Inversion(damping=damping, rcond=self.rcond)

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": "LinearHead", **asdict(self)}

    def fit(self, train: Side, *, like: HeadState | None = None, work: Work = ANY) -> HeadState:
        """Assemble and decompose the mean Hessian of the head.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

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
        phi = augmented(train, slice(0, len(train)))
        return fit_head(phi, train.logits, train.residual, self._rule(), train.problem.dtype)

    def solve(self, state: HeadState, queries: Side, rows: slice) -> Float[Tensor, "b D"]:
        """H^+ times the query gradients, in all logits but one.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients, D = (C-1) k.
        """
        return solve_head(state, augmented(queries, rows), queries.residual[rows])

    def scores(
        self, state: HeadState, solved: Float[Tensor, "b D"], train: Side, columns: slice
    ) -> Float[Tensor, "b n"]:
        """Solved queries against a block of train examples.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c], nats per unit weight.
        """
        return score_head(state, solved, columns)

    def spectrum(self, state: HeadState) -> Spectrum:
        """Facts of the mean Hessian; its (C-1) k eigenvalues are the ones that can differ from zero.

        Args:
            state: What `fit` gave.

        Returns:
            The facts.
        """
        return state.inverse.spectrum()

    def warnings(self, state: HeadState) -> list[str]:
        """There is nothing to warn of that the spectrum does not show.

        Args:
            state: What `fit` gave.

        Returns:
            An empty list.
        """
        return []

    def neighbours(self, state: HeadState) -> Mapping[str, HeadState]:
        """The same curvature at a tenth and at ten times the damping or cutoff.

        Args:
            state: What `fit` gave.

        Returns:
            Two states; fewer where they would have to be factored at length, or an estimate cannot tell what would be cut.
        """
        same = state.inverse
        return {name: state if at is same else replace(state, inverse=at) for name, at in same.neighbours().items()}

    def _rule(self) -> Inversion:
        return Inversion(damping=single(self.damping), rcond=self.rcond)


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


def fit_head(
    phi: Float[Tensor, "n F+1"],
    logits: Float[Tensor, "n C"],
    residual: Float[Tensor, "n C"],
    rule: Inversion,
    dtype: torch.dtype,
) -> HeadState:
    """Reduce the features, assemble the Hessian and factor it.

    Args:
        phi: Augmented features of the train set.
        logits: What the head makes of them.
        residual: Gradients of the losses in the logits.
        rule: Damping and cutoff.
        dtype: What the features were computed in.

    Returns:
        Everything that scoring needs.
    """
    V = row_space(phi)
    # the Gram is accumulated in float64, but features that came out of float32 hold no more digits than that
    eps = max(torch.finfo(torch.float64).eps, torch.finfo(dtype).eps ** 2)
    psi = phi if V is None else product(phi, V)
    return HeadState(invert(softmax_hessian(logits, psi), rule, eps, dtype), residual, V)


def solve_head(state: HeadState, phi: Float[Tensor, "b F+1"], residual: Float[Tensor, "b C"]) -> Float[Tensor, "b c k"]:
    """H^+ g for the gradients g = residual (x) features.

    Args:
        state: What `fit_head` gave.
        phi: Augmented features.
        residual: Gradients of the losses in the logits; each sums to zero.

    Returns:
        Solved gradients, float64, D = c k; the transpose of what lies in memory.
    """
    keep = state.inverse.hessian.keep
    psi = state.on_row_space(phi).T.contiguous()
    G = residual.T[keep][:, None, :] * psi
    return state.inverse.solve(G, state.residual[:, keep]).flatten(0, 1).T


def score_head(state: HeadState, solved: Float[Tensor, "b D"], columns: slice) -> Float[Tensor, "b n"]:
    """Solved gradients against train examples, whose own gradients are written out in small pieces alone.

    Args:
        state: What `fit_head` gave.
        solved: What `solve_head` gave.
        columns: Which train examples.

    Returns:
        sum_a r_i[a] (X_t[a] . psi_i), nats per unit weight.
    """
    hessian, dtype = state.inverse.hessian, state.inverse.dtype
    X, r = solved.T.reshape(hessian.c, -1, len(solved)), state.residual[columns][:, hessian.keep]
    if dtype == torch.float64:
        return hessian.scores(X, r, columns)
    X, size = in_units(X, dtype)
    return hessian.scores(X, r, columns) * size[:, None]
