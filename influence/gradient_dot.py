"""Scores without a curvature: the plain dot product, or the cosine, of two gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .gradients import TrainGradients
from .side import Side
from .work import ANY, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDot:
    """score[t, i] = + g_t . g_i: TracIn at one checkpoint with unit learning rate (Pruthi et al. 2020).

    Its unit is squared nats per squared unit of parameter; as a cosine it has none.
    """

    cosine: bool = False
    """Divide by the lengths of the two gradients; an example whose gradient is zero scores zero."""

    @property
    def unit(self) -> str:
        """Unit of a score."""
        return "none (a cosine)" if self.cosine else "squared nats per squared unit of parameter"

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": "GradientDot", **asdict(self)}

    def fit(self, train: Side, *, like: TrainGradients | None = None, work: Work = ANY) -> TrainGradients:
        """Form the train gradients where they fit in memory.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            The gradients.
        """
        return TrainGradients.of(train) if like is None else like

    def solve(self, state: TrainGradients, queries: Side, rows: slice) -> Float[Tensor, "b p"]:
        """The query gradients themselves.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Gradients [b, p], of unit length for the cosine.
        """
        return self._scaled(queries.gradients(rows))

    def scores(
        self, state: TrainGradients, solved: Float[Tensor, "b p"], train: Side, columns: slice
    ) -> Float[Tensor, "b c"]:
        """Dot products with a block of train gradients.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c].
        """
        return solved @ self._scaled(state.rows(columns)).T

    def spectrum(self, state: TrainGradients) -> None:
        """There is no curvature.

        Args:
            state: What `fit` gave.
        """

    def warnings(self, state: TrainGradients) -> list[str]:
        """There is no inverse to warn of.

        Args:
            state: What `fit` gave.

        Returns:
            An empty list.
        """
        return []

    def neighbours(self, state: TrainGradients) -> Iterator[tuple[str, TrainGradients]]:
        """There is nothing to vary.

        Args:
            state: What `fit` gave.

        Returns:
            None.
        """
        return iter(())

    def _scaled(self, G: Tensor) -> Tensor:
        if not self.cosine:
            return G
        length = G.norm(dim=1, keepdim=True)
        return torch.where(length > 0, G / torch.where(length > 0, length, 1.0), 0.0)
