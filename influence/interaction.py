"""Examples removed together: one Newton step of the objective without a whole set, by Woodbury's formula.

With S removed and the weights of the others kept, H_S = H_lam - A_S^T A_S, and the value of the set for a query t is
g_t^T H_S^-1 sum_{i in S} g_i = sqrt(n) w~_S^T A_S H_lam^-1 g_t with w~_S = (I - M_SS)^-1 w_S, M_SS = A_S H_lam^-1 A_S^T; of a
single example it is the leave-one-out correction. In the dual form I - M_SS = lam [(K + lam I)^-1]_SS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blas import product
from .damped import Cholesky
from .errors import SolveError
from .row_factor import RowFactor, rows_of
from .side import Side

RightSide = Callable[[Side, slice], Tensor]
"""Queries and a block of them to what the inverse is applied to."""
BLOCK_BYTES = 2**27  # of written rows at once


@runtime_checkable
class Interaction(Protocol):
    """A factored curvature as sets of train examples see it: n examples with R rows each."""

    @property
    def weights(self) -> Float[Tensor, "n R"]:
        """w, as in g_i = sqrt(n) A_i^T w_i."""

    def answers(self, queries: Side, rows: slice) -> Float[Tensor, "n R b"]:
        """A H^-1 g_t for a block of queries.

        Args:
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            One vector of R an example and query.
        """

    def corrected(self, sets: Sequence[Int[Tensor, " _"]]) -> list[Float[Tensor, "_ R"]]:
        """The weights w~ of examples that are removed together.

        Args:
            sets: Positions of the examples of each set.

        Returns:
            (I - M_SS)^-1 w_S of each.
        """

    def rest(self) -> Float[Tensor, "n R R"]:
        """What leverage leaves of every example.

        Returns:
            I - M_ii.
        """

    def columns(self, example: int) -> Float[Tensor, "n R R"]:
        """A H^-1 A_j^T.

        Args:
            example: Position of j.

        Returns:
            One matrix an example.
        """


@runtime_checkable
class Interacting(Protocol):
    """A curvature that can tell what examples do together."""

    def interaction(self, state: Any, train: Side) -> Interaction:
        """Its fit as sets of examples see it.

        Args:
            state: What `fit` gave.
            train: The train set.

        Returns:
            All that sets need; the network is only asked for answers to queries.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """By K = A A^T and its Cholesky factor."""

    factor: Cholesky
    weights: Float[Tensor, "n R"]
    right_side: RightSide
    """A g_t."""

    def answers(self, queries: Side, rows: slice) -> Float[Tensor, "n R b"]:
        """As `Interaction` says.

        Args:
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            X = (K + lam I)^-1 A g_t.
        """
        return self.factor.solve(self.right_side(queries, rows)).view(*self.weights.shape, -1)

    def corrected(self, sets: Sequence[Int[Tensor, " _"]]) -> list[Float[Tensor, "_ R"]]:
        """As `Interaction` says, from the whole inverse where many columns of it are asked for.

        Args:
            sets: Positions of the examples of each set.

        Returns:
            Their weights.
        """
        n, R = self.weights.shape
        whole = self.factor.inverse() if 3 * sum(map(len, sets)) > n else None
        out = []
        for some in sets:
            rows = rows_of(some, R)
            if whole is None:
                inside = self._columns(rows)[rows]
            else:  # of which the lower triangle is there
                inside = whole[torch.maximum(rows[:, None], rows), torch.minimum(rows[:, None], rows)]
            out.append(_solved(self.factor.damping * inside, self.weights[some].reshape(-1, 1)).view(-1, R))
        return out

    def rest(self) -> Float[Tensor, "n R R"]:
        """As `Interaction` says.

        Returns:
            lam times the diagonal blocks of the inverse.
        """
        return self.factor.damping * self.factor.inverse_blocks(self.weights.shape[1])

    def columns(self, example: int) -> Float[Tensor, "n R R"]:
        """As `Interaction` says.

        Args:
            example: Position of j.

        Returns:
            The columns of I - lam (K + lam I)^-1.
        """
        n, R = self.weights.shape
        rows = rows_of(torch.tensor([example], device=self.weights.device), R)
        out = -self.factor.damping * self._columns(rows)
        out[rows] += torch.eye(R, dtype=out.dtype, device=out.device)
        return out.view(n, R, R)

    def _columns(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "N b"]:
        """Of the inverse."""
        unit = torch.zeros(self.weights.numel(), len(rows), dtype=torch.float64, device=rows.device)
        unit[rows, torch.arange(len(rows), device=rows.device)] = 1
        return self.factor.solve(unit)


@dataclass(frozen=True, slots=True, eq=False)
class Primal:
    """By H_lam [p, p] and whatever inverts it."""

    factor: RowFactor
    weights: Float[Tensor, "n R"]
    inverse: Callable[[Tensor], Tensor]
    """H_lam^-1 times vectors [p, b]."""
    right_side: RightSide
    """g_t."""

    def answers(self, queries: Side, rows: slice) -> Float[Tensor, "n R b"]:
        """As `Interaction` says.

        Args:
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            A H_lam^-1 g_t.
        """
        return self.factor.times(self.inverse(self.right_side(queries, rows))).view(*self.weights.shape, -1)

    def corrected(self, sets: Sequence[Int[Tensor, " _"]]) -> list[Float[Tensor, "_ R"]]:
        """As `Interaction` says; of a set with more rows than there are parameters by (I - M)^-1 = I + A_S H_S^-1 A_S^T.

        Args:
            sets: Positions of the examples of each set.

        Returns:
            Their weights.
        """
        out = []
        for some in sets:
            A, w = self.factor.rows(some), self.weights[some].reshape(-1, 1)
            Z = self.inverse(A.T)
            if len(A) <= A.shape[1]:
                w = _solved(_eye(A) - product(A, Z), w)
            else:
                left = torch.linalg.lu_factor_ex(_eye(Z) - product(Z, A))
                _require_regular(left.LU.diagonal().abs())
                w = w + product(A, torch.linalg.lu_solve(left.LU, left.pivots, product(Z, w)))
            out.append(w.view(-1, self.weights.shape[1]))
        return out

    def rest(self) -> Float[Tensor, "n R R"]:
        """As `Interaction` says.

        Returns:
            I - A_i H_lam^-1 A_i^T.
        """
        n, R = self.weights.shape
        every = torch.arange(n, device=self.weights.device)
        step = max(1, BLOCK_BYTES // (8 * R * self.factor.rows(every[:1]).shape[1]))
        parts = []
        for start in range(0, n, step):
            some = every[start : start + step]
            A = self.factor.rows(some)
            solved = self.inverse(A.T).T.reshape(len(some), R, -1)
            parts.append(torch.eye(R, dtype=A.dtype, device=A.device) - A.view(len(some), R, -1) @ solved.mT)
        return torch.cat(parts)

    def columns(self, example: int) -> Float[Tensor, "n R R"]:
        """As `Interaction` says.

        Args:
            example: Position of j.

        Returns:
            A H_lam^-1 A_j^T.
        """
        n, R = self.weights.shape
        own = self.factor.rows(torch.tensor([example], device=self.weights.device))
        return self.factor.times(self.inverse(own.T)).view(n, R, R)


def _eye(A: Tensor) -> Tensor:
    return torch.eye(len(A), dtype=A.dtype, device=A.device)


def _solved(rest: Float[Tensor, "s s"], w: Float[Tensor, "s 1"]) -> Float[Tensor, "s 1"]:
    L, info = torch.linalg.cholesky_ex(rest)
    _require_regular(L.diagonal() ** 2 * (info == 0))
    return torch.cholesky_solve(w, L)


def _require_regular(pivots: Float[Tensor, " s"]) -> None:
    """Of I - M, whose eigenvalues lie between 0 and 1."""
    if not bool(pivots.min() > len(pivots) * torch.finfo(pivots.dtype).eps):
        raise SolveError(
            "A set of examples has a leverage of 1: without it the fit is not determined; raise the damping, or take fewer."
        )
