"""The exact Gauss-Newton inverse for any number of parameters: in the dual form nothing of size p is inverted or compressed.

With the factor A [N, p] of the curvature, A^T A = GGN, and K = A A^T, M = A G_q^T, the scores of the queries are read off
X = (K + lam I)^-1 M: score[t, i] = sqrt(n) w_i^T X_[i, t]. Where p <= N the matrix A^T A itself is smaller, and is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import product
from .damped import SINGLE_CONDITION, Cholesky, check_residual, cholesky, largest_eigenvalue
from .damping import Damping, checked, chosen_damping, each, single
from .errors import SolveError
from .factors import KINDS, Rows, make_factor
from .gram import Precision, cross_gram
from .interaction import Dual, Interaction, Primal
from .moved import moved_losses
from .newton import NewtonMatrix, newton_matrix
from .reduced import ScoreError, measure_error
from .row_factor import DenseRows
from .rowset import full_rows, smaller_form, written_rows
from .side import Side
from .solve import Eigen, Inversion
from .spectrum import Spectrum
from .work import ANY, Work

SOLVE_BYTES = 2**28  # of right-hand sides in flight
LeaveOneOut = bool | Literal["loss"]


@dataclass(frozen=True, slots=True, eq=False)
class NewtonState:
    """A factored Gauss-Newton matrix."""

    base: NewtonMatrix
    rule: Inversion
    eigen: Eigen | None
    """Undamped, or cut: the whole decomposition, which is applied. Damped: the eigenvalues alone, or None for a large matrix."""
    factor: Cholesky | None
    """Damped: its solutions are right entry by entry."""
    weights: Float[Tensor, "n R"] | None
    """w, or w~ with the leave-one-out correction."""
    leverage: float | None = None
    """Largest eigenvalue of M_ii, where the correction was asked for."""
    train: Tensor | None = None
    """Dual with rows that do not span the gradients: A G_tr^T. Primal: sqrt(n) w^T A, the (corrected) train gradients."""
    lambda_min: float = float("nan")
    """Of a matrix that is only known by its Cholesky factor."""
    error: ScoreError | None = None
    """Measured, where rows were multiplied in less than their own precision."""


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
    """Added to every eigenvalue; "auto": three weight decays or a 1,000th of the largest eigenvalue, whichever is more; of a
    head the weight decay. Of a list `attribute` gives the scores of every entry, the first as the main ones."""
    rcond: float | None = None
    """Cutoff relative to the largest eigenvalue; None: size times rounding unit, and none when damped."""
    leave_one_out: LeaveOneOut = False
    """True: correct every score for the leverage of the example that is removed. "loss": n times the change of the query's
    loss at the logits that the removal leads to; train sets on themselves are then no longer symmetric."""
    samples: int = 1
    """Draws an example, for rows="sampled"."""
    seed: int = 0
    """Of the draws."""
    precision: Precision = "float32"
    """In which float32 rows are multiplied, in the dual form: "float32", or "tf32" or "bf16" on tensor cores, whose score
    error is then measured and told."""

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise UsageError(f"rows must be one of {', '.join(KINDS)}, got {self.rows!r}.")
        if self.form not in ("auto", "primal", "dual"):
            raise UsageError(f"form must be 'auto', 'primal' or 'dual', got {self.form!r}.")
        if self.leave_one_out not in (False, True, "loss"):
            raise UsageError(f"leave_one_out must be False, True or 'loss', got {self.leave_one_out!r}.")
        if self.precision not in ("float32", "tf32", "bf16"):
            raise UsageError(f"precision must be 'float32', 'tf32' or 'bf16', got {self.precision!r}.")
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
            if self.precision != "float32" and (damping == 0 or self.rcond is not None or self.rows == "sampled"):
                raise UsageError(
                    f"{self.precision} products need damping > 0, no cutoff and rows that span the gradient: only then can "
                    "their error be measured."
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
            UsageError: The loss is not cross-entropy, or a reduced precision is asked of the primal form.
        """
        if train.problem.loss is not None:
            raise UsageError("GaussNewton factors the Hessian of cross-entropy; with another loss use Hessian().")
        base = None if like is None else like.base
        if base is None or (self._spectral and base.products != torch.float64):
            base = self._matrix(train, work)
        state = self._factored(base)
        if self.precision != "float32":
            state = replace(state, error=measure_error(base, state.factor, self.precision))
        if self.leave_one_out:
            weights, leverage = _corrected_weights(state)
            state = replace(state, weights=weights, leverage=leverage)
        if base.form == "primal" or base.factor.weights is None:
            state = replace(state, train=_train_side(state))
        return state

    @property
    def _spectral(self) -> bool:
        """Whether any damping of the list is applied through the eigenvectors."""
        return self.rcond is not None or 0 in each(self.damping)

    def _matrix(self, train: Side, work: Work) -> NewtonMatrix:
        factor = make_factor(self.rows, train.logits, train.target, samples=self.samples, seed=self.seed)
        n, R, _ = factor.cotangents.shape
        form = smaller_form(train.problem, n, R) if self.form == "auto" else self.form
        if form == "primal" and self.precision != "float32":
            raise UsageError(
                f"With {train.problem.p:,} parameters and {n * R:,} rows the smaller matrix is the primal one, which is "
                f"accumulated in float64; leave precision={self.precision!r} out."
            )
        # a float32 Gram matrix has no small eigenvalues to cut at: what is inverted without damping is accumulated in float64
        return newton_matrix(train, factor, form, torch.float64 if self._spectral else self.precision, work)

    def _factored(self, base: NewtonMatrix) -> NewtonState:
        given = single(self.damping)
        whole = given == 0 or self.rcond is not None
        eigen = base.eigen(vectors=whole)
        problem = base.rows.side.problem
        damping = chosen_damping(given, base.lambda_max, problem.weight_decay, head=problem.linear)
        rule = Inversion(damping=damping, rcond=self.rcond)
        if whole:
            return NewtonState(base, rule, eigen, None, base.factor.weights)
        factor = cholesky(base.matrix, damping)
        lambda_min = float("nan")
        if eigen is None:
            lowest = 1 / largest_eigenvalue(factor.solve, base.size, base.matrix.device, steps=6)
            lambda_min = max(0.0, lowest - damping)
        return NewtonState(base, rule, eigen, factor, base.factor.weights, lambda_min=lambda_min)

    def solve(self, state: NewtonState, queries: Side, rows: slice) -> Float[Tensor, "b k"]:
        """H^+ g for a block of queries: in the dual form, and for moved losses, already contracted with every train example.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Scores [b, n]; in the primal form, but for moved losses, H^+ g [b, p].
        """
        columns = state.base.rows.cotangents.shape[2] if self.leave_one_out == "loss" else 1
        step = max(1, SOLVE_BYTES // (8 * state.base.size * columns))
        parts = [slice(at, min(at + step, rows.stop)) for at in range(rows.start, rows.stop, step)]
        return torch.cat([self._solve(state, queries, part) for part in parts])

    def _solve(self, state: NewtonState, queries: Side, rows: slice) -> Tensor:
        base = state.base
        if self.leave_one_out == "loss":
            return _moved(state, queries, rows)
        M = base.right_side(queries, rows)
        X = apply_inverse(state, M)
        if base.form == "primal":
            return X.T
        if state.weights is not None:
            scores: Tensor = base.n**0.5 * torch.einsum("nr,nrb->bn", state.weights, X.view(base.n, base.R, -1))
            return scores
        return self._long_form(state, queries, rows, M, X)

    def _long_form(self, state: NewtonState, queries: Side, rows: slice, M: Tensor, X: Tensor) -> Tensor:
        """Scores for rows that do not span the gradients, from G_tr G_q^T and V = A G_tr^T."""
        assert state.train is not None  # formed by `fit` for such rows
        if state.rule.damping == 0:
            return (state.train.T @ apply_inverse(state, X)).T
        residual = queries.residual[rows][:, None, :]
        direct = cross_gram(state.base.single_rows(), queries, rows, residual, state.base.products)
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
        if state.base.form == "dual" or self.leave_one_out == "loss":
            return solved[:, columns]
        assert state.train is not None  # formed by `fit` for the primal form
        return product(solved, state.train[columns].T)

    def spectrum(self, state: NewtonState) -> Spectrum:
        """Facts of the Gram matrix, whose non-zero eigenvalues are those of the Gauss-Newton matrix.

        Args:
            state: What `fit` gave.

        Returns:
            The facts; without a full spectrum both ends of it come from a few steps of Lanczos: the largest eigenvalue is a
            lower bound, the smallest an upper one.
        """
        if state.eigen is not None:
            return state.eigen.spectrum(state.rule)
        return Spectrum.of_ends(state.base.size, state.rule.damping, state.base.lambda_max, state.lambda_min)

    def neighbours(self, state: NewtonState) -> Iterator[tuple[str, NewtonState]]:
        """The same matrix at a tenth and at ten times the damping or cutoff.

        Args:
            state: What `fit` gave.

        Yields:
            Names and states, with the leave-one-out weights of this one; a float32 factor serves where the condition allows,
            since only the order of the first few matters.
        """
        cutoff = 0.0 if state.eigen is None else state.eigen.cutoff(state.rule)
        for factor in (0.1, 10.0):
            rule = state.rule.scaled(factor, cutoff)
            other = None
            if state.factor is not None:
                fine = state.base.lambda_max < SINGLE_CONDITION * rule.damping
                other = cholesky(state.base.matrix, rule.damping, torch.float32 if fine else torch.float64)
            yield f"{factor:g}x", replace(state, rule=rule, factor=other)

    def interaction(self, state: NewtonState, train: Side) -> Interaction:
        """The fit as sets of train examples see it.

        Args:
            state: What `fit` gave.
            train: The train set.

        Returns:
            What values of sets need.

        Raises:
            UsageError: Nothing is damped, some eigenvalues are cut, or the rows do not span the gradients.
        """
        base, weights = state.base, state.base.factor.weights
        if weights is None:
            raise UsageError("What examples do together needs rows that span the gradient; sampled rows do not.")
        if state.factor is None:
            raise UsageError("What examples do together needs damping > 0 and no cutoff; undamped every leverage is 1.")
        if base.form == "dual":
            return Dual(state.factor, weights, base.right_side)
        A = torch.cat([block for _, block in written_rows(base.rows)])
        return Primal(DenseRows(A, base.R), weights, lambda G: apply_inverse(state, G), base.right_side)

    def warnings(self, state: NewtonState) -> list[str]:
        """What a user must know about this inverse.

        Args:
            state: What `fit` gave.

        Returns:
            Sentences.
        """
        said = []
        spectrum = self.spectrum(state)
        if state.rule.damping == 0 and state.base.form == "dual" and spectrum.rank == spectrum.size:
            said.append(
                "The undamped pseudo-inverse interpolates: every train example scores on itself alone, whatever the features. "
                "Take a damping."
            )
        if state.leverage is not None and state.leverage > 0.9:
            said.append(
                f"The largest leverage is {state.leverage:.2f}; first-order scores of such examples are far off."
            )
        if state.error is not None:
            said.append(state.error.sentence())
        return said


def apply_inverse(state: NewtonState, M: Float[Tensor, "size b"]) -> Float[Tensor, "size b"]:
    """(matrix + damping I)^-1 M, or the pseudo-inverse's.

    Args:
        state: The factored matrix.
        M: Right-hand sides, float64.

    Returns:
        The solutions.
    """
    if state.factor is None:
        assert state.eigen is not None  # one of the two is always there
        V = state.eigen.V
        return product(V, state.eigen.inverse(state.rule)[:, None] * product(V.T, M))
    X = state.factor.solve(M)
    if state.factor.L.dtype == torch.float64:
        check_residual(state.base.matrix, state.rule.damping, M, X)
    return X


def _moved(state: NewtonState, queries: Side, rows: slice) -> Tensor:
    """The change of each query's loss at its logits without each train example, times n."""
    base = state.base
    X = apply_inverse(state, base.right_side(queries, rows, logits=True))
    if base.form == "primal":
        assert state.train is not None  # formed by `fit` for the primal form
        shift = product(state.train, X) / base.n
    else:
        assert state.weights is not None  # the correction needs rows that span the gradient
        shift = torch.einsum("nr,nrb->nb", state.weights, X.view(base.n, base.R, -1)) / base.n**0.5
    logits = queries.logits[rows]
    delta = shift.view(base.n, *logits.shape).transpose(0, 1)
    return base.n * moved_losses(logits, queries.target[rows], delta)


def _train_side(state: NewtonState) -> Tensor:
    """What the train examples are multiplied with: (corrected) gradients [n, p], or A G_tr^T [N, n] for sampled rows."""
    base = state.base
    train, R = base.rows.side, base.R
    if base.form == "primal" and state.weights is not None:
        parts = [
            torch.einsum("br,brp->bp", state.weights[examples], block.view(-1, R, block.shape[1])) * base.n**0.5
            for examples, block in written_rows(base.rows)
        ]
        return torch.cat(parts)
    single = base.single_rows()
    if base.form == "primal":
        return torch.cat([full_rows(single.caught(examples)).double() for examples in single.blocks])
    columns = [cross_gram(base.rows, train, e, train.residual[e][:, None, :], base.products) for e in single.blocks]
    return torch.cat(columns, dim=1)


def _corrected_weights(state: NewtonState) -> tuple[Tensor, float]:
    """w~_i = (I - M_ii)^-1 w_i and the largest eigenvalue of any M_ii, the leverage."""
    base = state.base
    assert base.factor.weights is not None and (state.factor is not None or state.eigen is not None)
    if base.form == "dual":
        rest = state.rule.damping * _inverse_blocks(state)  # I - M_ii, without cancellation
    else:
        eye = torch.eye(base.R, dtype=torch.float64, device=base.matrix.device)
        rest = eye.repeat(base.n, 1, 1)
        for examples, block in written_rows(base.rows):
            solved = apply_inverse(state, block.T).T.view(-1, base.R, block.shape[1])
            rest[examples] -= block.view(-1, base.R, block.shape[1]) @ solved.mT
    lowest = float(torch.linalg.eigvalsh((rest + rest.mT) / 2).min())
    if lowest <= 0:
        raise SolveError("An example has a leverage of 1: without it the fit is not determined; raise the damping.")
    corrected: Tensor = torch.linalg.solve(rest, base.factor.weights[:, :, None])[:, :, 0]
    return corrected, 1 - lowest


def _inverse_blocks(state: NewtonState) -> Tensor:
    R = state.base.R
    if state.factor is not None:
        return state.factor.inverse_blocks(R)
    assert state.eigen is not None  # a cutoff beside the damping
    V = state.eigen.V.view(-1, R, len(state.eigen.lam))
    return (V * state.eigen.inverse(state.rule)) @ V.mT
