"""The exact Gauss-Newton inverse for any number of parameters: in the dual form nothing of size p is inverted or compressed.

With the factor A [N, p] of the curvature, A^T A = GGN, and K = A A^T, M = A G_q^T, the scores of the queries are read off
X = (K + lam I)^-1 M: score[t, i] = sqrt(n) w_i^T X_[i, t]. Where p <= N the matrix A^T A itself is smaller, and is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .damping import Damping, checked, each, single
from .errors import SolveError
from .factors import KINDS, Factor, Rows, make_factor
from .gram import RowSet, block_size, catch_rows, cross_gram, full_rows, gram, make_plan, smaller_form, written_rows
from .side import Side
from .solve import Eigen, Inversion, eigendecompose
from .spectrum import Spectrum
from .work import ANY, Work

AUTO_SHARE = 300  # damping="auto" is the largest eigenvalue over this, or the weight decay when that is larger
SPECTRUM_LIMIT = 2_500  # up to this size a damped fit computes all eigenvalues too, for the report
RESIDUAL = 1e-6  # relative residual of a damped solve above which it is refused


@dataclass(frozen=True, slots=True, eq=False)
class NewtonState:
    """A factored Gauss-Newton matrix."""

    rows: RowSet
    factor: Factor
    form: Literal["primal", "dual"]
    matrix: Float[Tensor, "size size"]
    """K [N, N], or A^T A [p, p]."""
    eigen: Eigen | None
    """Undamped, or cut: the whole decomposition. Damped: the eigenvalues alone, or None for a large matrix."""
    cholesky: Float[Tensor, "size size"] | None
    """Damped: the lower factor of matrix + damping I, whose solutions are right entry by entry."""
    rule: Inversion
    lambda_max: float
    lambda_min: float
    """NaN unless the matrix is only known by its Cholesky factor."""
    weights: Float[Tensor, "n R"] | None
    """w, or w~ with the leave-one-out correction."""
    leverage: float | None
    """Largest eigenvalue of M_ii, where the correction was asked for."""
    train: Tensor | None
    """Dual with rows that do not span the gradients: A G_tr^T. Primal: sqrt(n) w^T A, the (corrected) train gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussNewton:
    """Exact Gauss-Newton (for cross-entropy: Fisher) inverse over any parameters.

    Undamped it is the Moore-Penrose inverse of the GGN, which harms outside the head as soon as the train set can be
    interpolated; the default damping follows the spectrum.
    """

    unit: ClassVar[str] = "nats per unit weight"

    rows: Rows = "logits"
    """Factor of the curvature: "logits" (exact), "margin", "trak", "label" or "sampled"."""
    form: Literal["auto", "primal", "dual"] = "auto"
    """Which matrix is inverted: A^T A [p, p] or A A^T [N, N]; "auto" takes the smaller."""
    damping: Damping | Sequence[Damping] = "auto"
    """Added to every eigenvalue; "auto": the weight decay, or a 300th of the largest eigenvalue when that is more. Of a list
    `attribute` gives the scores of every entry, the first as the main ones."""
    rcond: float | None = None
    """Cutoff relative to the largest eigenvalue; None: size times rounding unit, and none when damped."""
    leave_one_out: bool = False
    """Correct every score for the leverage of the example that is removed."""
    samples: int = 1
    """Draws an example, for rows="sampled"."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise UsageError(f"rows must be one of {', '.join(KINDS)}, got {self.rows!r}.")
        if self.form not in ("auto", "primal", "dual"):
            raise UsageError(f"form must be 'auto', 'primal' or 'dual', got {self.form!r}.")
        object.__setattr__(self, "damping", checked(self.damping, auto=True))
        if self.samples < 1:
            raise UsageError(f"samples must be at least 1, got {self.samples}.")
        if self.leave_one_out and self.rows == "sampled":
            raise UsageError("The leave-one-out correction needs rows that span the gradient; sampled rows do not.")
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
        return {"name": "GaussNewton", **asdict(self)}

    def fit(self, train: Side, *, like: NewtonState | None = None, work: Work = ANY) -> NewtonState:
        """Form the Gram or Gauss-Newton matrix and factor it.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            Everything that scoring needs.

        Raises:
            UsageError: The loss is not cross-entropy.
        """
        if train.problem.loss is not None:
            raise UsageError("GaussNewton factors the Hessian of cross-entropy; with another loss use Hessian().")
        factor = make_factor(self.rows, train.logits, train.target, samples=self.samples, seed=self.seed)
        n, R, _ = factor.cotangents.shape
        form = smaller_form(train.problem, n, R) if self.form == "auto" else self.form
        plan = make_plan(train, R, write_all=form == "primal")
        rows = RowSet(train, plan, factor.cotangents, block_size(train, plan, R))
        matrix = gram(rows) if form == "dual" else _normal_matrix(rows)
        state = self._factor(rows, factor, form, matrix)
        return replace(state, train=_train_side(state)) if form == "primal" or factor.weights is None else state

    def _factor(self, rows: RowSet, factor: Factor, form: Literal["primal", "dual"], matrix: Tensor) -> NewtonState:
        size = len(matrix)
        given = single(self.damping)
        whole = given == 0 or self.rcond is not None
        eigen = None
        if whole or size <= SPECTRUM_LIMIT:
            eps = torch.finfo(torch.float64 if rows.side.problem.linear else rows.side.problem.dtype).eps
            # inner products of float32 rows are float32; what float64 accumulates of them has the rows' rounding, squared
            eps = eps if form == "dual" else max(torch.finfo(torch.float64).eps, eps**2)
            eigen = eigendecompose(matrix, eps, vectors=whole)
        lambda_max = float(eigen.lam[0]) if eigen is not None else largest_eigenvalue(matrix)
        auto = max(rows.side.problem.weight_decay or 0.0, lambda_max / AUTO_SHARE)
        damping = auto if given == "auto" else float(given)
        rule = Inversion(damping=damping, rcond=self.rcond)
        cholesky = None if whole else _cholesky(matrix, damping)
        lambda_min = float("nan")
        if eigen is None and cholesky is not None:
            lambda_min = max(0.0, 1 / largest_eigenvalue(cholesky, inverse=True) - damping)
        state = NewtonState(
            rows, factor, form, matrix, eigen, cholesky, rule, lambda_max, lambda_min, factor.weights, None, None
        )
        if self.leave_one_out:
            weights, leverage = _corrected_weights(state)
            state = replace(state, weights=weights, leverage=leverage)
        return state

    def solve(self, state: NewtonState, queries: Side, rows: slice) -> Float[Tensor, "b k"]:
        """H^+ g for a block of queries: in the dual form already contracted with every train example.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Dual: scores [b, n]. Primal: H^+ g [b, p].
        """
        cotangents = queries.residual[rows][:, None, :]
        if state.form == "primal":
            G = full_rows(catch_rows(queries, state.rows.plan, rows, cotangents))
            return apply_inverse(state, G.T).T
        n, R = state.factor.cotangents.shape[:2]
        if queries is state.rows.side and state.factor.weights is not None:
            M = _train_columns(state, rows)
        else:
            M = cross_gram(state.rows, queries, rows, cotangents)
        X = apply_inverse(state, M)
        if state.weights is not None:
            scores: Tensor = n**0.5 * torch.einsum("nr,nrb->bn", state.weights, X.view(n, R, -1))
            return scores
        return self._long_form(state, queries, rows, M, X)

    def _long_form(self, state: NewtonState, queries: Side, rows: slice, M: Tensor, X: Tensor) -> Tensor:
        """Scores for rows that do not span the gradients, from G_tr G_q^T and V = A G_tr^T."""
        assert state.train is not None  # formed by `fit` for such rows
        if state.rule.damping == 0:
            return (state.train.T @ apply_inverse(state, X)).T
        train = state.rows.side
        single = RowSet(train, state.rows.plan, train.residual[:, None, :], state.rows.block)
        direct = cross_gram(single, queries, rows, queries.residual[rows][:, None, :])
        return ((direct - state.train.T @ X) / state.rule.damping).T

    def scores(
        self, state: NewtonState, solved: Float[Tensor, "b k"], train: Side, columns: slice
    ) -> Float[Tensor, "b c"]:
        """The tile of a block of train examples.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c], nats per unit weight.
        """
        if state.form == "dual":
            return solved[:, columns]
        assert state.train is not None  # formed by `fit` for the primal form
        return solved @ state.train[columns].T

    def spectrum(self, state: NewtonState) -> Spectrum:
        """Facts of the Gram matrix, whose non-zero eigenvalues are those of the Gauss-Newton matrix.

        Args:
            state: What `fit` gave.

        Returns:
            The facts; without a full spectrum the smallest eigenvalue comes from inverse iteration.
        """
        if state.eigen is not None:
            return state.eigen.spectrum(state.rule)
        damping = state.rule.damping
        lowest = state.lambda_min
        return Spectrum(
            size=len(state.matrix),
            rank=len(state.matrix),
            cutoff=0.0,
            damping=damping,
            lambda_max=state.lambda_max,
            lambda_min=lowest,
            smallest_kept=lowest + damping,
            condition=(state.lambda_max + damping) / (lowest + damping),
            trace_kept=1.0,
            negative=0,
            negative_trace=0.0,
        )

    def neighbours(self, state: NewtonState) -> Mapping[str, NewtonState]:
        """The same matrix at a tenth and at ten times the damping or cutoff.

        Args:
            state: What `fit` gave.

        Returns:
            Two states, without the leave-one-out correction.
        """
        cutoff = 0.0 if state.eigen is None else state.eigen.cutoff(state.rule)
        out = {}
        for factor in (0.1, 10.0):
            rule = state.rule.scaled(factor, cutoff)
            cholesky = None if state.cholesky is None else _cholesky(state.matrix, rule.damping)
            out[f"{factor:g}x"] = replace(state, rule=rule, cholesky=cholesky)
        return out

    def warnings(self, state: NewtonState) -> list[str]:
        """What a user must know about this inverse.

        Args:
            state: What `fit` gave.

        Returns:
            Sentences.
        """
        said = []
        spectrum = self.spectrum(state)
        if state.rule.damping == 0 and state.form == "dual" and spectrum.rank == spectrum.size:
            said.append(
                "The undamped pseudo-inverse interpolates: every train example scores on itself alone, whatever the features. "
                "Take a damping."
            )
        if state.leverage is not None and state.leverage > 0.9:
            said.append(
                f"The largest leverage is {state.leverage:.2f}; first-order scores of such examples are far off."
            )
        return said


def _normal_matrix(rows: RowSet) -> Float[Tensor, "p p"]:
    """A^T A, accumulated in float64."""
    p = rows.side.problem.p
    H = torch.zeros(p, p, dtype=torch.float64, device=rows.side.logits.device)
    for _, block in written_rows(rows):
        H.addmm_(block.T, block)
    return H


def _train_columns(state: NewtonState, examples: slice) -> Float[Tensor, "N b"]:
    """A g for train examples, read off K: g_i = sqrt(n) A_i^T w_i."""
    assert state.factor.weights is not None
    n, R = state.factor.cotangents.shape[:2]
    columns = state.matrix[:, examples.start * R : examples.stop * R].view(n * R, -1, R)
    M: Tensor = n**0.5 * (columns * state.factor.weights[examples]).sum(2)
    return M


def _train_side(state: NewtonState) -> Tensor:
    """What the train examples are multiplied with: (corrected) gradients [n, p], or A G_tr^T [N, n] for sampled rows."""
    train = state.rows.side
    n, R = state.factor.cotangents.shape[:2]
    if state.form == "primal" and state.weights is not None:
        parts = [
            torch.einsum("br,brp->bp", state.weights[examples], block.view(-1, R, block.shape[1])) * n**0.5
            for examples, block in written_rows(state.rows)
        ]
        return torch.cat(parts)
    single = RowSet(train, state.rows.plan, train.residual[:, None, :], state.rows.block)
    if state.form == "primal":
        return torch.cat([full_rows(single.caught(examples)) for examples in single.blocks])
    return torch.cat([cross_gram(state.rows, train, e, train.residual[e][:, None, :]) for e in single.blocks], dim=1)


def apply_inverse(state: NewtonState, M: Float[Tensor, "size b"]) -> Float[Tensor, "size b"]:
    """(matrix + damping I)^-1 M, or the pseudo-inverse's.

    Args:
        state: The factored matrix.
        M: Right-hand sides, float64.

    Returns:
        The solutions.

    Raises:
        SolveError: The residual of a damped solve is too large.
    """
    damping = state.rule.damping
    if state.cholesky is None:
        assert state.eigen is not None  # one of the two is always there
        return state.eigen.V @ (state.eigen.inverse(state.rule)[:, None] * (state.eigen.V.T @ M))
    X = solve_factored(state.cholesky, M)
    rest = float((M - state.matrix @ X - damping * X).norm())
    if rest > RESIDUAL * max(float(M.norm()), 1e-300):
        raise SolveError(
            f"The damped system has a relative residual of {rest / float(M.norm()):.1e}; raise the damping or take float64."
        )
    return X


def _cholesky(matrix: Tensor, damping: float) -> Tensor:
    shifted = matrix.clone()
    L: Tensor
    shifted.diagonal().add_(damping)
    if shifted.is_cuda:
        L, failed = torch.linalg.cholesky_ex(shifted)
        bad = int(failed)
    else:
        factor, bad = scipy.linalg.lapack.dpotrf(shifted.numpy().T, lower=True, overwrite_a=True, clean=True)
        L = torch.from_numpy(factor)
    if bad:
        raise SolveError(
            f"The curvature with damping {damping:g} is not positive definite to rounding; raise the damping."
        )
    return L


def solve_factored(L: Float[Tensor, "size size"], M: Float[Tensor, "size b"]) -> Float[Tensor, "size b"]:
    """(L L^T)^-1 M.

    Args:
        L: Lower Cholesky factor, float64.
        M: Right-hand sides.

    Returns:
        The solutions.
    """
    if L.is_cuda:
        return torch.cholesky_solve(M, L)
    X, _ = scipy.linalg.lapack.dpotrs(L.numpy(), M.numpy(), lower=True)
    return torch.from_numpy(X)


def largest_eigenvalue(matrix: Float[Tensor, "size size"], *, inverse: bool = False, steps: int = 40) -> float:
    """Power iteration on a positive semi-definite matrix.

    Args:
        matrix: The matrix; with `inverse` its lower Cholesky factor.
        inverse: Iterate with the inverse.
        steps: At most so many products; it stops at a relative change of 1e-5.

    Returns:
        The Rayleigh quotient, a lower bound of the largest eigenvalue.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(matrix), 1, generator=generator, dtype=matrix.dtype).to(matrix.device)
    v /= v.norm()
    value = 0.0
    for _ in range(steps):
        u = solve_factored(matrix, v) if inverse else matrix @ v
        before, value = value, float((v * u).sum())
        length = float(u.norm())
        if length == 0 or abs(value - before) <= 1e-5 * abs(value):
            break
        v = u / length
    return value


def _corrected_weights(state: NewtonState) -> tuple[Tensor, float]:
    """w~_i = (I - M_ii)^-1 w_i and the largest eigenvalue of any M_ii, the leverage."""
    assert state.factor.weights is not None
    n, R = state.factor.cotangents.shape[:2]
    lam = state.rule.damping
    if state.form == "dual":
        inverse = _inverse(state)
        at = torch.arange(n * R, device=inverse.device).view(n, R)
        rest = lam * inverse[at[:, :, None], at[:, None, :]]  # I - M_ii, without cancellation
    else:
        eye = torch.eye(R, dtype=torch.float64, device=state.matrix.device)
        rest = torch.empty(n, R, R, dtype=torch.float64, device=state.matrix.device)
        for examples, block in written_rows(state.rows):
            solved = apply_inverse(state, block.T).T.view(-1, R, block.shape[1])
            rest[examples] = eye - block.view(-1, R, block.shape[1]) @ solved.mT
    lowest = float(torch.linalg.eigvalsh((rest + rest.mT) / 2).min())
    if lowest <= 0:
        raise SolveError("An example has a leverage of 1: without it the fit is not determined; raise the damping.")
    corrected: Tensor = torch.linalg.solve(rest, state.factor.weights[:, :, None])[:, :, 0]
    return corrected, 1 - lowest


def _inverse(state: NewtonState) -> Tensor:
    if state.cholesky is not None:
        return torch.cholesky_inverse(state.cholesky)
    assert state.eigen is not None  # one of the two is always there
    return (state.eigen.V * state.eigen.inverse(state.rule)) @ state.eigen.V.T
