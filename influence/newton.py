"""The Gauss-Newton matrix of a train set in its smaller form, and everything about it that no damping changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import normal_matrix, product
from .damped import largest_eigenvalue
from .errors import SolveError
from .factors import Factor
from .gram import Precision, cross_gram, gram
from .rowset import KEPT_SHARE, RowSet, catch_rows, full_rows, make_plan, row_set, written_rows
from .side import Side
from .solve import Eigen, eigendecompose
from .work import Work

Form = Literal["primal", "dual"]
RIGHT_BYTES = 2**28  # of right-hand sides that are kept
SPECTRUM_LIMIT = 2_500  # up to this size a damped fit computes all eigenvalues too, for the report


@dataclass(slots=True, eq=False)
class NewtonMatrix:
    """K = A A^T [N, N], or A^T A [p, p], with what it was made from."""

    rows: RowSet
    factor: Factor
    form: Form
    products: Precision | torch.dtype
    """Type in which rows are multiplied."""
    matrix: Float[Tensor, "size size"]
    eps: float
    """Rounding unit of what the matrix was accumulated from."""
    _eigen: Eigen | None = None
    _lambda_max: float | None = None
    _right: list[tuple[Side, slice, bool, Tensor]] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Train examples."""
        return len(self.rows.side)

    @property
    def R(self) -> int:
        """Rows an example."""
        return self.rows.R

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return len(self.matrix)

    def eigen(self, *, vectors: bool) -> Eigen | None:
        """The eigenvalues; decomposed once.

        Args:
            vectors: Their vectors too, whatever the size.

        Returns:
            The decomposition; None where only the eigenvalues of a large matrix are asked for.
        """
        known = self._eigen is not None and (not vectors or self._eigen.V.numel() > 0)
        if not known and (vectors or self.size <= SPECTRUM_LIMIT):
            self._eigen = eigendecompose(self.matrix, self.eps, vectors=vectors)
        return self._eigen

    @property
    def lambda_max(self) -> float:
        """Largest eigenvalue."""
        if self._eigen is not None:
            return float(self._eigen.lam[0])
        if self._lambda_max is None:
            device = self.matrix.device
            self._lambda_max = largest_eigenvalue(lambda X: product(self.matrix, X), self.size, device)
        return self._lambda_max

    def right_side(self, queries: Side, rows: slice, *, logits: bool = False) -> Float[Tensor, "size b"]:
        """What the inverse is applied to for a block of queries; the last ones are kept for the next damping.

        Args:
            queries: The side that the block belongs to.
            rows: The block.
            logits: The derivative of every logit [b C] instead of the loss's [b].

        Returns:
            Primal: gradients. Dual: A times them. float64.
        """
        for side, block, kind, M in self._right:
            if side is queries and (block, kind) == (rows, logits):
                return M
        cotangents = queries.residual[rows][:, None, :]
        if logits:
            C = cotangents.shape[2]
            cotangents = torch.eye(C, dtype=cotangents.dtype, device=cotangents.device).expand(len(cotangents), C, C)
        if self.form == "primal":
            caught = catch_rows(queries, self.rows.plan, rows, cotangents, self.rows.step)
            M = full_rows(caught).double().T
        elif queries is self.rows.side and self.factor.weights is not None and not logits:
            M = self.train_columns(rows)
        else:
            M = cross_gram(self.rows, queries, rows, cotangents, self.products)
        self._right.append((queries, rows, logits, M))
        while len(self._right) > 1 and sum(kept.nbytes for *_, kept in self._right) > RIGHT_BYTES:
            del self._right[0]
        return M

    def train_columns(self, examples: slice) -> Float[Tensor, "N b"]:
        """A g for train examples, read off K: g_i = sqrt(n) A_i^T w_i.

        Args:
            examples: Which ones.

        Returns:
            Columns, float64.
        """
        assert self.factor.weights is not None  # the rows span the gradient
        columns = self.matrix[:, self.rows.span(examples)].view(self.size, -1, self.R)
        M: Tensor = self.n**0.5 * torch.einsum("Nbr,br->Nb", columns, self.factor.weights[examples])
        return M

    def single_rows(self) -> RowSet:
        """The gradients of the train losses as rows, one an example."""
        train = self.rows.side
        return RowSet(
            train, self.rows.plan, train.residual[:, None, :], self.rows.block, self.rows.step, self.rows.keep
        )


def newton_matrix(
    train: Side, factor: Factor, form: Form, products: Precision | torch.dtype, work: Work
) -> NewtonMatrix:
    """Form the matrix.

    Args:
        train: The train set, examined.
        factor: Its cotangents.
        form: Which of the two.
        products: Type in which rows are multiplied in the dual form; in the primal it is float64.
        work: Memory, keeper of tiles, whom to tell.

    Returns:
        The matrix.

    Raises:
        SolveError: It does not fit into memory.
    """
    R = factor.cotangents.shape[1]
    size = len(train) * R if form == "dual" else train.problem.p
    device = train.logits.device
    need, room = 16 * size**2, work.room(device)
    if need > room:
        what = f"{len(train):,} examples with {R} rows each" if form == "dual" else f"{size:,} parameters"
        raise SolveError(
            f"The Gauss-Newton matrix of {what} and its factor take {need / 2**30:.1f} GiB, and there are {room / 2**30:.1f}; "
            + (
                "take rows='margin', which needs one row an example, or fewer examples."
                if form == "dual" and R > 1
                else "analyse fewer examples or parameters."
            )
        )
    plan = make_plan(train, R, write_all=form == "primal", keep=work.budget(device) // KEPT_SHARE)
    rows = row_set(train, plan, factor.cotangents, work, whole=form == "primal")
    own = torch.finfo(torch.float64 if train.problem.linear else train.problem.dtype).eps
    exact = max(torch.finfo(torch.float64).eps, own**2)  # what float64 accumulates of rows has their rounding, squared
    if form == "primal":
        return NewtonMatrix(rows, factor, form, torch.float64, _normal_matrix(rows), exact)
    if work.tiles is not None:
        rows.block = work.tiles.open(_key(rows, products), rows.block)
    eps = exact if products == torch.float64 else own
    return NewtonMatrix(rows, factor, form, products, gram(rows, products, work), eps)


def _key(rows: RowSet, products: Precision | torch.dtype) -> dict[str, str | int | list[str]]:
    """What the entries of K depend on, beside the weights and the examples, which the keeper knows."""
    return {
        "parameters": list(rows.side.problem.theta),
        "products": str(products),
        "dtype": str(rows.side.problem.dtype),
        "rows": rows.R,
        "examples": rows.side.fingerprint,
        "cotangents": hash_of(rows.cotangents),
    }


def hash_of(values: Tensor) -> str:
    """A name for some numbers.

    Args:
        values: Any tensor.

    Returns:
        sha256 of their bytes.
    """
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()


def _normal_matrix(rows: RowSet) -> Float[Tensor, "p p"]:
    """A^T A, accumulated in float64."""
    p = rows.side.problem.p
    H = torch.zeros(p, p, dtype=torch.float64, device=rows.side.logits.device)
    for _, block in written_rows(rows):
        H += normal_matrix(block)
    return H
