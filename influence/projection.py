"""Random matrices that rows are multiplied with, drawn piece by piece: never held whole, and the same for any block of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import product

Draw = Literal["rademacher", "gaussian", "orthogonal"]
DRAWS: tuple[Draw, ...] = ("rademacher", "gaussian", "orthogonal")
PIECE = 2048  # rows of the matrix that are drawn at a time; a part of what a seed means


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """P [p, width] with E[P P^T] = I: independent entries of variance 1 / width, or orthogonal columns of one length."""

    p: int
    width: int
    draw: Draw
    seed: int
    whole: Float[Tensor, "p width"] | None = None
    """Orthogonal columns cannot be drawn in pieces."""

    @classmethod
    def of(cls, p: int, width: int, draw: Draw, seed: int) -> Projection:
        """The projection of a seed.

        Args:
            p: Length of a row.
            width: Length of a projected row.
            draw: "rademacher", signs; "gaussian", normal numbers; "orthogonal", a random subspace.
            seed: Of the numbers.

        Returns:
            The projection; nothing is drawn yet but orthogonal columns.

        Raises:
            UsageError: More orthogonal columns are asked for than there are.
        """
        if draw != "orthogonal":
            return cls(p, width, draw, seed)
        if width > p:
            raise UsageError(
                f"{p:,} parameters have no {width:,} orthogonal directions; take a width of at most {p:,}."
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(p, width, generator=generator, dtype=torch.float64)
        return cls(p, width, draw, seed, torch.linalg.qr(drawn).Q * (p / width) ** 0.5)

    def pieces(self, dtype: torch.dtype) -> Iterator[tuple[slice, Float[Tensor, "c width"]]]:
        """The matrix, some rows at a time, on the CPU.

        Args:
            dtype: Type of the numbers.

        Yields:
            Which rows, and the rows.
        """
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.p, PIECE):
            part = slice(start, min(start + PIECE, self.p))
            if self.whole is not None:
                yield part, self.whole[part].to(dtype)
            elif self.draw == "gaussian":
                drawn = torch.randn(part.stop - start, self.width, generator=generator, dtype=torch.float32)
                yield part, drawn.to(dtype) / self.width**0.5
            else:
                yield (
                    part,
                    _signs(part.stop - start, self.width, generator).to(dtype).mul_(2).sub_(1).div_(self.width**0.5),
                )

    def apply(self, G: Float[Tensor, "b p"]) -> Float[Tensor, "b width"]:
        """G P.

        Args:
            G: Rows.

        Returns:
            Projected rows, multiplied in the type of the rows and added up in float64.
        """
        out = torch.zeros(len(G), self.width, dtype=torch.float64, device=G.device)
        for part, P in self.pieces(G.dtype):
            out += product(G[:, part], P.to(G.device))
        return out


def _signs(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Random bits."""
    drawn = torch.randint(256, (-(-rows * width // 8),), generator=generator, dtype=torch.uint8)
    return torch.from_numpy(np.unpackbits(drawn.numpy())[: rows * width]).view(rows, width)
