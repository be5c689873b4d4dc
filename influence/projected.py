"""The Gauss-Newton inverse of randomly projected rows, as TRAK has it; beside `GaussNewton` it shows what projecting costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import normal_matrix, product, times_transposed
from .damped import Cholesky, check_residual, cholesky, largest_eigenvalue
from .damping import Damping, check_positive, checked, chosen_damping, single
from .errors import SolveError
from .factors import Rows, make_factor
from .newton import SPECTRUM_LIMIT, Form
from .projection import DRAWS, Draw, Projection
from .rowset import RowSet, catch_rows, full_rows, make_plan, row_set
from .side import Side
from .solve import Inversion, eigendecompose
from .spectrum import Spectrum
from .work import ANY, Work

PART = 2048  # columns of projected rows that are widened to float64 at a time
KINDS = ("trak", "margin", "logits", "label")


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedMatrix:
    """Projected rows Z = A P and the smaller of Z^T Z and Z Z^T."""

    rows: RowSet
    projection: Projection
    weights: Float[Tensor, "n R"]
    """w in g_i = sqrt(n) A_i^T w_i."""
    Z: Float[Tensor, "N width"]
    """In the type of the problem."""
    form: Form
    """Primal: Z^T Z [width, width]; dual: Z Z^T [N, N]."""
    matrix: Float[Tensor, "size size"]
    lambda_max: float


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedState:
    """The matrix and its factor at one damping."""

    base: ProjectedMatrix
    factor: Cholesky
    spectrum: Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class Projected:
    """score[t, i] = + g_t^T P ((A P)^T A P + damping I)^-1 P^T g_i with rows A of the mean curvature and a random P [p, width].

    As the width grows the scores go to those of `GaussNewton` with the same rows and damping, their error falling as
    1 / sqrt(width). P is drawn in pieces and never held (but for "orthogonal"); N or width, whichever is less, is the size of
    the matrix that is inverted, with N the number of rows. TRAK's scores, undamped and with its kernel rows="trak", are these
    over n (1 - q_t), in the same order for each query.

    Source: Park et al. 2023, arXiv:2303.14186.
    """

    unit: ClassVar[str] = "nats per unit weight"

    rows: Rows = "trak"
    """"trak", one row an example without its weight in the curvature; "margin", with it; "logits", the exact Gauss-Newton matrix;
    "label", the empirical Fisher."""
    width: int = 2048
    """Columns of P."""
    damping: Damping | Sequence[Damping] = "auto"
    """Added to every eigenvalue of the mean curvature. "auto": three weight decays or a 1,000th of the largest eigenvalue of
    the projected rows, whichever is more; of a head the weight decay. Of a list `attribute` gives the scores of every entry, the
    first as the main ones."""
    draw: Draw = "rademacher"
    """Entries of P: "rademacher", signs; "gaussian"; "orthogonal", orthogonal columns: exact at a width of p, and held whole."""
    seed: int = 0
    """Of P."""

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise UsageError(f"rows must be one of {', '.join(KINDS)}, got {self.rows!r}.")
        if self.draw not in DRAWS:
            raise UsageError(f"draw must be one of {', '.join(DRAWS)}, got {self.draw!r}.")
        if self.width < 1:
            raise UsageError(f"width must be at least 1, got {self.width}.")
        object.__setattr__(self, "damping", checked(self.damping, auto=True))
        check_positive(self.damping, "Projected")

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": "Projected", **asdict(self)}

    def fit(self, train: Side, *, like: ProjectedState | None = None, work: Work = ANY) -> ProjectedState:
        """Project the rows and factor their matrix.

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
            raise UsageError("Projected takes rows of cross-entropy; with another loss use Hessian() or Lanczos().")
        base = self._matrix(train, work) if like is None else like.base
        problem = train.problem
        given = single(self.damping)
        return _factored(base, chosen_damping(given, base.lambda_max, problem.weight_decay, head=problem.linear))

    def _matrix(self, train: Side, work: Work) -> ProjectedMatrix:
        factor = make_factor(self.rows, train.logits, train.target, samples=1, seed=0)
        assert factor.weights is not None  # of every kind that is taken here
        R, p, device = factor.cotangents.shape[1], train.problem.p, train.logits.device
        self._check_memory(len(train) * R, train, work)
        plan = make_plan(train, R, write_all=True)
        rows = row_set(train, plan, factor.cotangents, work, whole=True)
        rows.keep = 0  # each block is looked at once
        projection = Projection.of(p, self.width, self.draw, self.seed)
        dtype = torch.float64 if train.problem.linear else train.problem.dtype
        Z = torch.empty(rows.N, self.width, dtype=dtype, device=device)
        for i, block in enumerate(rows.blocks):
            Z[rows.span(block)] = projection.apply(full_rows(rows.caught(block))).to(dtype)
            if work.told is not None:
                work.told(i + 1, len(rows.blocks))
        form: Form = "primal" if self.width <= rows.N else "dual"
        matrix = _normal_matrix(Z) if form == "primal" else _gram(Z)
        lambda_max = largest_eigenvalue(lambda X: product(matrix, X), len(matrix), device)
        return ProjectedMatrix(rows, projection, factor.weights, Z, form, matrix, lambda_max)

    def _check_memory(self, N: int, train: Side, work: Work) -> None:
        item = 8 if train.problem.linear else torch.finfo(train.problem.dtype).bits // 8
        whole = 16 * train.problem.p * self.width if self.draw == "orthogonal" else 0
        need = 16 * min(N, self.width) ** 2 + item * N * self.width + whole
        room = work.room(train.logits.device)
        if need > room:
            raise SolveError(
                f"{N:,} rows of width {self.width:,} and their matrix take {need / 2**30:.1f} GiB, and there are "
                f"{room / 2**30:.1f}; lower the width{'' if len(train) == N else ', or take rows with one an example'}."
            )

    def solve(self, state: ProjectedState, queries: Side, rows: slice) -> Float[Tensor, "b k"]:
        """The projected inverse times the projected query gradients.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Primal: [b, width]; dual: contracted with every train example already, [b, n].
        """
        base = state.base
        caught = catch_rows(queries, base.rows.plan, rows, queries.residual[rows][:, None, :], base.rows.step)
        M = base.projection.apply(full_rows(caught)).T
        if base.form == "dual":
            M = _times(base.Z, M)
        X = state.factor.solve(M)
        check_residual(base.matrix, state.factor.damping, M, X)
        if base.form == "primal":
            return X.T
        n, R = base.weights.shape
        scores: Tensor = n**0.5 * torch.einsum("nr,nrb->bn", base.weights, X.view(n, R, -1))
        return scores

    def scores(
        self, state: ProjectedState, solved: Float[Tensor, "b k"], train: Side, columns: slice
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
        base = state.base
        if base.form == "dual":
            return solved[:, columns]
        n, R = base.weights.shape
        Z = base.Z[base.rows.span(columns)].view(-1, R, base.Z.shape[1]).double()
        G = n**0.5 * torch.einsum("cr,crw->cw", base.weights[columns], Z)
        return product(solved, G.T)

    def spectrum(self, state: ProjectedState) -> Spectrum:
        """Facts of the projected rows' matrix.

        Args:
            state: What `fit` gave.

        Returns:
            The facts.
        """
        return state.spectrum

    def warnings(self, state: ProjectedState) -> list[str]:
        """There is nothing to warn of that the width does not say.

        Args:
            state: What `fit` gave.

        Returns:
            An empty list.
        """
        return []

    def neighbours(self, state: ProjectedState) -> Iterator[tuple[str, ProjectedState]]:
        """The same matrix at a tenth and at ten times the damping.

        Args:
            state: What `fit` gave.

        Yields:
            Names and states.
        """
        for factor in (0.1, 10.0):
            damping = factor * state.factor.damping
            yield f"{factor:g}x", replace(state, factor=cholesky(state.base.matrix, damping))


def _factored(base: ProjectedMatrix, damping: float) -> ProjectedState:
    factor = cholesky(base.matrix, damping)
    size, device = len(base.matrix), base.matrix.device
    if size <= SPECTRUM_LIMIT:
        eps = torch.finfo(base.Z.dtype).eps
        facts = eigendecompose(base.matrix, eps, vectors=False).spectrum(Inversion(damping=damping))
    else:
        lowest = max(0.0, 1 / largest_eigenvalue(factor.solve, size, device, steps=6) - damping)
        facts = Spectrum.of_ends(size, damping, base.lambda_max, lowest)
    return ProjectedState(base, factor, facts)


def _parts(length: int) -> list[slice]:
    return [slice(start, start + PART) for start in range(0, length, PART)]


def _normal_matrix(Z: Float[Tensor, "N width"]) -> Float[Tensor, "width width"]:
    H = torch.zeros(Z.shape[1], Z.shape[1], dtype=torch.float64, device=Z.device)
    for part in _parts(len(Z)):
        H += normal_matrix(Z[part].double())
    return H


def _gram(Z: Float[Tensor, "N width"]) -> Float[Tensor, "N N"]:
    K = torch.zeros(len(Z), len(Z), dtype=torch.float64, device=Z.device)
    for part in _parts(Z.shape[1]):
        wide = Z[:, part].double().contiguous()
        K += times_transposed(wide, wide)
    return K


def _times(Z: Float[Tensor, "N width"], M: Float[Tensor, "width b"]) -> Float[Tensor, "N b"]:
    return torch.cat([product(Z[part].double(), M) for part in _parts(len(Z))])
