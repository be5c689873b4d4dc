"""A symmetric positive definite matrix in square tiles, of which only the lower half exists: factored and solved in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import cholesky_, divide_, solve_triangle_, subtract_applied, subtract_product, threads_for


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

    def factor_(self) -> bool:
        """Replace the matrix by its lower Cholesky factor.

        Returns:
            Whether it was positive definite to rounding; if not, what is left is of no use.
        """
        with threads_for(2 * max(self.sizes) ** 3):
            for j in range(len(self.rows)):
                if not cholesky_(self.rows[j][j]):
                    return False
                for i in range(j + 1, len(self.rows)):
                    divide_(self.rows[i][j], self.rows[j][j])
                for i in range(j + 1, len(self.rows)):
                    for k in range(j + 1, i + 1):
                        subtract_product(self.rows[i][k], self.rows[i][j], self.rows[k][j])
        return True

    def solve_(self, X: Float[Tensor, "size b"]) -> None:
        """Solve with the factored matrix, in place.

        Args:
            X: Right-hand sides in columns, contiguous, of the type of the tiles.
        """
        parts = torch.split(X, self.sizes)
        count = len(parts)
        with threads_for(2 * parts[0].numel() * max(self.sizes)):
            for i in range(count):
                for j in range(i):
                    subtract_applied(parts[i], self.rows[i][j], parts[j], transposed=False)
                solve_triangle_(self.rows[i][i], parts[i], transposed=False)
            for j in reversed(range(count)):
                for i in range(j + 1, count):
                    subtract_applied(parts[j], self.rows[i][j], parts[i], transposed=True)
                solve_triangle_(self.rows[j][j], parts[j], transposed=True)

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
