"""A factored curvature that stays beside the scores: values of sets of train examples, and sets built greedily."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .errors import SolveError
from .interaction import Interaction


@dataclass(frozen=True, slots=True, eq=False)
class KeptCurvature:
    """A factored curvature beside the scores that were made with it."""

    interaction: Interaction
    answers: Float[Tensor, "n R m"]
    """A H^-1 g_t of every query."""

    def value(self, chosen: Int[NDArray[np.int64], " s"]) -> Float[NDArray[np.float64], " m"]:
        """Value of a set for every query: the Newton step without it.

        Args:
            chosen: Positions of its examples.

        Returns:
            Nats per unit weight; positive: removing the set raises the query's loss by about value / n.
        """
        some = torch.as_tensor(chosen, device=self.answers.device)
        (weights,) = self.interaction.corrected([some])
        n = len(self.answers)
        values: NDArray[np.float64] = n**0.5 * torch.einsum("sr,srm->m", weights, self.answers[some]).cpu().numpy()
        return values

    def greedy(self, query: int, k: int, skip: int | None = None) -> tuple[list[int], list[float]]:
        """A set that is valuable to a query, one example at a time: each has the largest gain beside those before it.

        With x = A H_S^-1 g_t, u = A H_S^-1 A_S^T w_S and D_i = I - A_i H_S^-1 A_i^T the gain of example i beside S is
        sqrt(n) x_i^T D_i^-1 (w_i + u_i).

        Args:
            query: Which one.
            k: Examples to take.
            skip: An example that is not to be taken.

        Returns:
            Their positions, in the order in which they were taken, and their gains; among equal gains the lower position.
        """
        w = self.interaction.weights
        x, u, D = self.answers[:, :, query].clone(), torch.zeros_like(w), self.interaction.rest()
        open_ = torch.ones(len(w), dtype=torch.bool, device=w.device)
        if skip is not None:
            open_[skip] = False
        taken: list[int] = []
        gains: list[float] = []
        updates: list[tuple[Tensor, Tensor]] = []
        while len(taken) < k:
            gain = len(w) ** 0.5 * (x * _solve_open(D, w + u, open_)).sum(1)
            gain[~open_] = -torch.inf
            j = int(gain.argmax())
            C = self.interaction.columns(j)
            for before, inverse in updates:
                C = C + before @ (inverse @ before[j].mT)
            T = torch.linalg.inv(D[j])
            x, u, D = x + (C @ (T @ x[j])), u + (C @ (T @ (w[j] + u[j]))), D - C @ T @ C.mT
            open_[j] = False
            updates.append((C, T))
            taken.append(j)
            gains.append(float(gain[j]))
        return taken, gains


def _solve_open(D: Float[Tensor, "n R R"], b: Float[Tensor, "n R"], open_: Bool[Tensor, " n"]) -> Float[Tensor, "n R"]:
    """D_i^-1 b_i of the examples that can still be taken; 0 for the others."""
    L, info = torch.linalg.cholesky_ex((D[open_] + D[open_].mT) / 2)
    if bool((info > 0).any()):
        raise SolveError("An example has a leverage of 1 beside those taken; take fewer, or raise the damping.")
    out = torch.zeros_like(b)
    out[open_] = torch.cholesky_solve(b[open_][:, :, None], L)[:, :, 0]
    return out
