"""Keeping the train gradients of a block method: in memory when they fit, formed again when they do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .side import Side

KEPT_BYTES = 2 * 2**30  # train gradients up to this size are formed once


@dataclass(frozen=True, slots=True, eq=False)
class TrainGradients:
    """Per-example gradients of the train set."""

    side: Side
    kept: Float[Tensor, "n p"] | None

    @classmethod
    def of(cls, side: Side) -> TrainGradients:
        """Form them once where they fit.

        Args:
            side: The train set, examined.

        Returns:
            The gradients, or the means to form them block by block.
        """
        item = torch.finfo(torch.float64 if side.problem.linear else side.problem.dtype).bits // 8
        fits = len(side) * side.problem.p * item <= KEPT_BYTES
        return cls(side, side.gradients(slice(0, len(side))) if fits else None)

    def rows(self, columns: slice) -> Float[Tensor, "c p"]:
        """Gradients of a block.

        Args:
            columns: Which train examples.

        Returns:
            Gradients [c, p].
        """
        return self.kept[columns] if self.kept is not None else self.side.gradients(columns)
