"""The last linear layer in closed form: no autograd, one matrix product a pair of contrasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import in_units, product
from .damping import Damping, automatic, checked, each, single
from .factors import make_factor
from .head_features import row_space
from .head_hessian import SoftmaxHessian, softmax_hessian
from .head_inverse import Factored, Inverse, extreme, invert
from .head_leverage import corrected
from .interaction import Interaction, Primal
from .moved import moved_losses
from .row_factor import HeadRows
from .side import Side
from .solve import Inversion
from .spectrum import Spectrum
from .work import ANY, Work

MOVED_BYTES = 2**26  # of moved logits at once
Rule = Inversion | Callable[[SoftmaxHessian], Inversion]


@dataclass(frozen=True, slots=True, eq=False)
class HeadState:
    """The factored curvature of a head, in all logits but one and on the row space of the features."""

    inverse: Inverse
    r: Float[Tensor, "n c"]
    """Gradients of the train losses in the logits that are kept."""
    V: Float[Tensor, "A k"] | None
    """Orthonormal basis of the row space of the train features, the constant one included; None when it is the whole space."""
    weights: Float[Tensor, "n c"] | None = None
    """The same with the leave-one-out correction."""
    leverage: float | None = None
    """The largest of any train example, where the correction was asked for."""
    moves: Float[Tensor, "D n"] | None = None
    """H^+ times the corrected gradients, for the loss at moved logits."""

    def on_row_space(self, phi: Float[Tensor, "b A"]) -> Float[Tensor, "b k"]:
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
    is float64 throughout: with 784 features a float32 factor refined to 1e-10 took 1.4 times as long. A float32 problem of such
    a size and of moderate condition has a float32 factor, and solutions that are refined where a sample of them asks for it; not
    with a leave-one-out correction, which divides by what is left of one when a leverage is taken from it.
    """

    unit: ClassVar[str] = "nats per unit weight"

    damping: Damping | Sequence[Damping] = 0.0
    """Added to every eigenvalue of the mean Hessian; exact when it is the L2 penalty that the head was fitted with. "auto": the
    weight decay, which is that penalty, or a 1,000th of the largest eigenvalue where none is known. Of a list `attribute` gives
    the scores of every entry, the first as the main ones."""
    rcond: float | None = None
    """Cutoff relative to the largest eigenvalue; None: size times rounding unit, and none when damped."""
    leave_one_out: bool | Literal["loss"] = False
    """True: correct every score for the leverage of the example that is removed. "loss": n times the change of the query's
    loss at the logits that the removal leads to; train sets on themselves are then no longer symmetric."""

    def __post_init__(self) -> None:
        if self.leave_one_out not in (False, True, "loss"):
            raise UsageError(f"leave_one_out must be False, True or 'loss', got {self.leave_one_out!r}.")
        object.__setattr__(self, "damping", checked(self.damping, auto=True))
        for damping in each(self.damping):
            if not isinstance(damping, str):
                Inversion(damping=damping, rcond=self.rcond)
            if self.leave_one_out and damping == 0:
                raise UsageError(
                    "The leave-one-out correction needs damping > 0, the L2 penalty of the objective; got 0."
                )

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
        phi, dtype = augmented(train, slice(0, len(train))), train.problem.dtype
        rule = self._rule(train.problem.weight_decay)
        state = fit_head(phi, train.logits, train.residual, rule, dtype, self.leave_one_out, like)
        return self._corrected(state)

    def solve(self, state: HeadState, queries: Side, rows: slice) -> Float[Tensor, "b D"]:
        """H^+ times the query gradients, in all logits but one; for the loss at moved logits what tells a query from others.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients, D = (C-1) k; or features, logits and label.
        """
        phi = augmented(queries, rows)
        if self.leave_one_out == "loss":  # the train examples were solved for instead
            return torch.cat([state.on_row_space(phi), queries.logits[rows], queries.target[rows, None]], dim=1)
        return solve_head(state, phi, queries.residual[rows])

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
        if self.leave_one_out == "loss":
            return moved_head(state, solved, columns)
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
        """What a user must know beside the spectrum.

        Args:
            state: What `fit` gave.

        Returns:
            A sentence on the leverage, or none.
        """
        if state.leverage is None or state.leverage <= 0.9:
            return []
        return [f"The largest leverage is {state.leverage:.2f}; first-order scores of such examples are far off."]

    def interaction(self, state: HeadState, train: Side) -> Interaction:
        """The fit as sets of train examples see it, in float64.

        Args:
            state: What `fit` gave.
            train: The train set.

        Returns:
            What values of sets need.

        Raises:
            UsageError: Some eigenvalues are cut.
        """
        inverse = state.inverse
        if isinstance(inverse, Factored) and inverse.dtype != torch.float64:
            inverse = invert(inverse.hessian, inverse.rule, torch.finfo(torch.float64).eps)
        if not isinstance(inverse, Factored):
            raise UsageError("What examples do together needs a curvature of which nothing is cut; take a damping > 0.")
        hessian = inverse.hessian
        factor = make_factor("logits", train.logits, train.target, samples=1, seed=0)
        assert factor.weights is not None  # these rows span the gradient
        shape = hessian.c, hessian.psi.shape[1], -1

        def gradients(queries: Side, rows: slice) -> Tensor:
            psi = state.on_row_space(augmented(queries, rows)).T
            return (queries.residual[rows].T[hessian.keep][:, None, :] * psi).flatten(0, 1)

        return Primal(
            HeadRows(factor.cotangents[:, :, hessian.keep], hessian.psi),
            factor.weights,
            lambda G: inverse.solve(G.reshape(shape).clone(), state.r).flatten(
                0, 1
            ),  # which overwrites what it is given
            gradients,
        )

    def neighbours(self, state: HeadState) -> Iterator[tuple[str, HeadState]]:
        """The same curvature at a tenth and at ten times the damping or cutoff.

        Args:
            state: What `fit` gave.

        Returns:
            Two states; fewer where they would have to be factored at length, or an estimate cannot tell what would be cut.
        """
        found = state.inverse.neighbours().items()
        same = state.inverse
        return ((name, state if at is same else self._corrected(replace(state, inverse=at))) for name, at in found)

    def _corrected(self, state: HeadState) -> HeadState:
        if not self.leave_one_out:
            return state
        weights, leverage = corrected(state.inverse, state.r)
        moves = None
        if self.leave_one_out == "loss":
            G = weights.T[:, None, :] * state.inverse.hessian.psi.T
            moves = state.inverse.solve(G, state.r).flatten(0, 1)
        return replace(state, weights=weights, leverage=leverage, moves=moves)

    def _rule(self, weight_decay: float | None) -> Rule:
        given = single(self.damping)
        if given != "auto":
            return Inversion(damping=given, rcond=self.rcond)
        if weight_decay:
            return Inversion(damping=weight_decay, rcond=self.rcond)
        return lambda hessian: Inversion(damping=automatic(extreme(hessian), None, head=True), rcond=self.rcond)


def augmented(side: Side, rows: slice) -> Float[Tensor, "b A"]:
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
    phi: Float[Tensor, "n A"],
    logits: Float[Tensor, "n C"],
    residual: Float[Tensor, "n C"],
    rule: Rule,
    dtype: torch.dtype,
    exact: bool | str = False,
    like: HeadState | None = None,
) -> HeadState:
    """Reduce the features, assemble the Hessian and factor it.

    Args:
        phi: Augmented features of the train set.
        logits: What the head makes of them.
        residual: Gradients of the losses in the logits.
        rule: Damping and cutoff, or what makes them from the Hessian.
        dtype: What the features were computed in.
        exact: Factor in float64 whatever that is.
        like: The same at another damping, whose features and eigenvalues are taken over.

    Returns:
        Everything that scoring needs.
    """
    # the Gram is accumulated in float64, but features that came out of float32 hold no more digits than that
    eps = max(torch.finfo(torch.float64).eps, torch.finfo(dtype).eps ** 2)
    factor = torch.float64 if exact else dtype
    if like is not None:
        rule = rule if isinstance(rule, Inversion) else rule(like.inverse.hessian)
        inverse = invert(like.inverse.hessian, rule, eps, factor, like.inverse)
        return replace(like, inverse=inverse, weights=None, leverage=None, moves=None)
    V = row_space(phi)
    psi = phi if V is None else product(phi, V)
    hessian = softmax_hessian(logits, psi)
    rule = rule if isinstance(rule, Inversion) else rule(hessian)
    return HeadState(invert(hessian, rule, eps, factor), residual[:, hessian.keep], V)


def solve_head(state: HeadState, phi: Float[Tensor, "b A"], residual: Float[Tensor, "b C"]) -> Float[Tensor, "b D"]:
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
    return state.inverse.solve(G, state.r).flatten(0, 1).T


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
    X = solved.T.reshape(hessian.c, -1, len(solved))
    r = (state.r if state.weights is None else state.weights)[columns]
    if dtype == torch.float64:
        return hessian.scores(X, r, columns)
    X, size = in_units(X, dtype)
    return hessian.scores(X, r, columns) * size[:, None]


def moved_head(state: HeadState, queries: Float[Tensor, "b w"], columns: slice) -> Float[Tensor, "b n"]:
    """N times the change of each query's loss at the logits that it has without a train example.

    Args:
        state: What `fit_head` gave, with the moves of the weights.
        queries: Features on their row space [b, k], logits [b, C] and label, side by side.
        columns: Which train examples.

    Returns:
        Scores, nats per unit weight.
    """
    assert state.moves is not None  # formed by `fit` for this kind of score
    hessian = state.inverse.hessian
    n, C = hessian.q.shape
    psi, z, y = torch.split(queries, [hessian.psi.shape[1], C, 1], dim=1)
    moves = state.moves[:, columns].view(hessian.c, psi.shape[1], -1)
    out: Tensor = psi.new_empty(len(psi), moves.shape[2])
    step = max(1, MOVED_BYTES // (8 * C * moves.shape[2]))
    for start in range(0, len(psi), step):
        part = slice(start, start + step)
        delta = psi.new_zeros(len(psi[part]), moves.shape[2], C)  # the loss does not see a shift of all logits
        for a, kept in enumerate(hessian.keep.tolist()):
            delta[:, :, kept] = product(psi[part], moves[a]) / n
        out[part] = n * moved_losses(z[part], y[part, 0].long(), delta)
    return out
