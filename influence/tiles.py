"""A symmetric positive definite matrix in square tiles, of which only the lower half exists: factored and solved in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import (
    cholesky_,
    cuts,
    divide_,
    one_thread,
    side_by_side,
    solve_triangle_,
    subtract_applied,
    subtract_product,
    workers,
)

PIECE = 512  # rows of a piece of the factorisation: one keeps a core busy for some milliseconds


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The lower half of a symmetric matrix, or of its Cholesky factor.

    Half the memory of the whole matrix, and nearly all of the work in products of whole tiles.
    """

    rows: Sequence[Sequence[Tensor]]
    """rows[i][j] for j <= i, contiguous; what lies above the diagonal of rows[i][i] means nothing."""

    @property
    def sizes(self) -> list[int]:
        """Length of each diagonal tile."""
        return [len(row[0]) for row in self.rows]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.rows[0][0].dtype

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(tile.nbytes for row in self.rows for tile in row)

    def copy(self) -> Tiles:
        """The same numbers in tensors of their own.

        Returns:
            A copy.
        """
        return Tiles([[tile.clone() for tile in row] for row in self.rows])

    def factor_(self) -> bool:
        """Replace the matrix by its lower Cholesky factor.

        Returns:
            Whether it was positive definite to rounding; if not, what is left is of no use.
        """
        P = self._pieces()
        count, device = len(P), P[0][0].device

        def divide(i: int) -> None:
            divide_(P[i][j], P[j][j])

        def update(at: tuple[int, int]) -> None:
            i, k = at
            subtract_product(P[i][k], P[i][j], P[k][j])

        flops = 2.0 * PIECE**3
        with one_thread():
            for j in range(count):
                if not cholesky_(P[j][j]):
                    return False
                below = range(j + 1, count)
                side_by_side(divide, below, flops / 2 * len(below), device)
                ahead = [(i, k) for i in below for k in range(j + 1, i + 1)]
                side_by_side(update, ahead, flops * len(ahead), device)
        return True

    def _pieces(self) -> list[list[Tensor]]:
        """The same lower half in smaller tiles: views, small enough to keep all cores busy to the end."""
        pieces = [cuts(size, -(-size // PIECE)) for size in self.sizes]
        out = []
        for i, row in enumerate(self.rows):
            for down in pieces[i]:
                parts = [
                    tile[down, across]
                    for j, tile in enumerate(row)
                    for across in pieces[j]
                    if i != j or across.start <= down.start
                ]
                out.append(parts)
        return out

    def solve_(self, X: Float[Tensor, "size b"]) -> None:
        """Solve with the factored matrix, in place.

        Args:
            X: Right-hand sides in columns, contiguous, of the type of the tiles.
        """
        flops = 2.0 * X.numel() * len(X)
        count = max(1, min(workers(flops), X.shape[1]))
        side_by_side(self._solve_columns, X.tensor_split(count, dim=1), flops, X.device)

    def _solve_columns(self, X: Float[Tensor, "size b"]) -> None:
        parts = torch.split(X, self.sizes)
        count = len(parts)
        for i in range(count):
            for j in range(i):
                subtract_applied(parts[i], self.rows[i][j], parts[j], transposed=False)
            solve_triangle_(self.rows[i][i], parts[i], transposed=False)
        for j in reversed(range(count)):
            for i in range(j + 1, count):
                subtract_applied(parts[j], self.rows[i][j], parts[i], transposed=True)
            solve_triangle_(self.rows[j][j], parts[j], transposed=True)

    def inverse_columns(self, j: int) -> Float[Tensor, "rows columns"]:
        """Columns of the inverse of the factored matrix, from the diagonal tile down.

        Args:
            j: Which tile the columns are those of.

        Returns:
            A new tensor: the rows of that tile and of all below it.
        """
        trailing = Tiles([row[j:] for row in self.rows[j:]])  # what is above it does not reach these entries
        X = self.rows[0][0].new_zeros(sum(trailing.sizes), trailing.sizes[0])
        X.diagonal().fill_(1.0)
        trailing.solve_(X)
        return X

    def dense(self) -> Float[Tensor, "size size"]:
        """The whole symmetric matrix.

        Returns:
            A new tensor; the tiles are copied.
        """
        stops = torch.tensor(self.sizes).cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        H = self.rows[0][0].new_empty(stops[-1], stops[-1])
        for i, row in enumerate(self.rows):
            for j, tile in enumerate(row):
                lower = slice(starts[i], stops[i]), slice(starts[j], stops[j])
                if i == j:
                    H[lower] = tile.tril() + tile.tril(-1).T
                else:
                    H[lower] = tile
                    H[lower[1], lower[0]] = tile.T
        return H
