"""Losses at moved logits: what removing an example does to a loss, once its leverage has moved the logits by a lot."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from .rows import split_label

NEAR = 0.5  # up to this relative change of 1 / q_y the closed difference is used, beyond it a difference of logarithms
LARGEST = 600.0  # exp of it is finite, and so is the sum over any number of classes


def moved_losses(
    logits: Float[Tensor, "b C"], y: Int[Tensor, " b"], delta: Float[Tensor, "b n C"]
) -> Float[Tensor, "b n"]:
    """l(z + delta) - l(z) of the cross-entropy, without the cancellation of subtracting two losses.

    With d_c = delta_c - delta_y it is log(1 + sum over c != y of q_c expm1(d_c)), in which every q_c keeps its digits however
    confident the network is. Where that sum is not small, log(q_y + sum of exp(log q_c + d_c)) overflows nowhere.

    Args:
        logits: Outputs of the network.
        y: The label that each loss is taken at.
        delta: Moves of the logits, n of each.

    Returns:
        The change of each loss under each move in nats, float64.
    """
    margin, log_rest, others = split_label(logits, y)
    log_q = logsigmoid(-margin)[:, None] + log_rest  # of the other classes
    delta = delta.double()
    at = (len(delta), delta.shape[1], others.shape[1])
    d = delta.gather(2, others[:, None, :].expand(at)) - delta.gather(2, y[:, None, None].expand(*at[:2], 1))
    total = torch.einsum("bnc,bc->bn", d.clamp(max=LARGEST).expm1(), log_q.exp())
    far = total.abs() > NEAR
    change = total.where(~far, 0.0).log1p()
    if bool(far.any()):
        query = far.nonzero()[:, 0]
        terms = torch.cat([logsigmoid(margin)[query, None], log_q[query] + d[far]], dim=1)
        change[far] = terms.logsumexp(dim=1)
    return change
