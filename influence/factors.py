"""The choice of rows: every factor A with curvature A^T A that the Gauss-Newton solver takes, as cotangents of the logits.

Row a of example i is A_i^a = c_i^a J_i with c_i^a in logit space; weights w give the gradient back, g_i = sqrt(n) A_i^T w_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .rows import LOWEST_MARGIN, hessian_factor, residuals, split_label

Rows = Literal["logits", "margin", "trak", "label", "sampled"]
KINDS: tuple[Rows, ...] = ("logits", "margin", "trak", "label", "sampled")


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Cotangents of a set of examples, and the way back to their gradients."""

    cotangents: Float[Tensor, "n R C"]
    """c, divided by sqrt(n) (and by sqrt(s) for s samples); float64."""
    weights: Float[Tensor, "n R"] | None
    """w; None where the rows do not span the gradient."""


def make_factor(kind: Rows, logits: Float[Tensor, "n C"], y: Int[Tensor, " n"], *, samples: int, seed: int) -> Factor:
    """The rows of a train set.

    Args:
        kind: "logits", the exact Gauss-Newton matrix, C-1 rows an example; "margin", its part that sets the label against the
            rest, one row; "trak", the kernel of TRAK as released, which drops the weight of that row; "label", the empirical
            Fisher; "sampled", a Monte-Carlo Fisher.
        logits: Outputs of the network, float64.
        y: Labels.
        samples: Draws an example, for "sampled".
        seed: Of the draws.

    Returns:
        Cotangents and weights, float64.
    """
    n, C = logits.shape
    scale = n**-0.5
    margin, log_rest, others = split_label(logits, y)
    margin = margin.clamp(min=LOWEST_MARGIN)
    first = -torch.exp(-margin / 2)  # residual over the first row of the factor: sqrt(b / a), and minus
    if kind == "logits":
        L = hessian_factor(logits, y)
        weights = torch.zeros(n, C - 1, dtype=L.dtype, device=L.device)
        weights[:, 0] = first
        return Factor(L * scale, weights)
    if kind == "label":
        return Factor(
            residuals(logits, y)[:, None, :] * scale, torch.ones(n, 1, dtype=torch.float64, device=logits.device)
        )
    if kind == "sampled":
        return Factor(_sampled(logits, samples, seed) * (n * samples) ** -0.5, None)
    # gradient of the margin in the logits: one-hot minus the softmax over the other classes
    slope = torch.zeros_like(logits).scatter_(1, others, -log_rest.exp()).scatter_(1, y[:, None], 1.0)
    a, b = torch.sigmoid(margin), torch.sigmoid(-margin)
    if kind == "margin":
        return Factor(((a * b).sqrt()[:, None] * slope)[:, None, :] * scale, first[:, None])
    return Factor(slope[:, None, :] * scale, -b[:, None])


def _sampled(logits: Tensor, samples: int, seed: int) -> Tensor:
    """Residuals at labels drawn from the network's own softmax, [n, samples, C]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.softmax(1).cpu(), samples, replacement=True, generator=generator).to(logits.device)
    return torch.stack([residuals(logits, drawn[:, s]) for s in range(samples)], dim=1)
