"""The factor A of a curvature as rows that can be asked for: written out, or as products of a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blas import product

Set = Int[Tensor, " s"]
"""Positions of some examples."""


@runtime_checkable
class RowFactor(Protocol):
    """The factor A itself, written out as far as it must be."""

    def rows(self, examples: Set) -> Float[Tensor, "sR p"]:
        """The rows of some examples.

        Args:
            examples: Which ones.

        Returns:
            One below the other.
        """

    def times(self, Y: Float[Tensor, "p b"]) -> Float[Tensor, "N b"]:
        """A Y.

        Args:
            Y: Vectors.

        Returns:
            Their products with every row.
        """


@dataclass(frozen=True, slots=True, eq=False)
class DenseRows:
    """All rows written out."""

    A: Float[Tensor, "N p"]
    R: int

    def rows(self, examples: Set) -> Float[Tensor, "sR p"]:
        """As `RowFactor` says.

        Args:
            examples: Which ones.

        Returns:
            One below the other.
        """
        return self.A[rows_of(examples, self.R)]

    def times(self, Y: Float[Tensor, "p b"]) -> Float[Tensor, "N b"]:
        """As `RowFactor` says.

        Args:
            Y: Vectors.

        Returns:
            A Y.
        """
        return product(self.A, Y)


@dataclass(frozen=True, slots=True, eq=False)
class HeadRows:
    """A_i = L_i (x) psi_i of a linear head, which is never written out as a whole."""

    L: Float[Tensor, "n R c"]
    psi: Float[Tensor, "n k"]

    def rows(self, examples: Set) -> Float[Tensor, "sR p"]:
        """As `RowFactor` says.

        Args:
            examples: Which ones.

        Returns:
            One below the other.
        """
        written: Tensor = self.L[examples][:, :, :, None] * self.psi[examples][:, None, None, :]
        return written.flatten(2).flatten(0, 1)

    def times(self, Y: Float[Tensor, "p b"]) -> Float[Tensor, "N b"]:
        """As `RowFactor` says.

        Args:
            Y: Vectors.

        Returns:
            A Y.
        """
        n, k = self.psi.shape
        c, b = self.L.shape[2], Y.shape[1]
        inner = product(self.psi, Y.view(c, k, b).transpose(0, 1).reshape(k, c * b))
        return (self.L @ inner.view(n, c, b)).flatten(0, 1)


def rows_of(examples: Set, R: int) -> Int[Tensor, " sR"]:
    """Where the rows of some examples stand.

    Args:
        examples: Which ones.
        R: Rows of each.

    Returns:
        Row a of example i lies at i R + a.
    """
    return (examples[:, None] * R + torch.arange(R, device=examples.device)).flatten()
