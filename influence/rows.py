"""Margins, residuals and the square root of the softmax Hessian, from logits, in float64 and without cancellation.

For one example with label y the softmax Hessian in the logits is S = diag(q) - q q^T. It is split into "y against the rest"
and "within the rest": with the margin m = z_y - logsumexp of the other logits, a = q_y = sigmoid(m), b = 1 - q_y =
sigmoid(-m) and the softmax q' over the other classes, every quantity keeps its digits however confident the network is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOWEST_MARGIN = -60.0  # below, q_y is zero to every digit that a score can show; further down exp(-m) would overflow


def split_label(
    logits: Float[Tensor, "n C"], y: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n C-1"], Int[Tensor, "n C-1"]]:
    """Margin of the label and softmax over the other classes.

    Args:
        logits: Outputs of the network.
        y: Labels.

    Returns:
        The margin m [n]; the log-softmax over the C-1 other classes [n, C-1]; which classes those are [n, C-1]. float64.
    """
    logits = logits.to(torch.float64)
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = columns + (columns >= y[:, None]).long()  # the class numbers without y, ascending
    rest = logits.gather(1, others)
    lse = torch.logsumexp(rest, dim=1)
    margin = logits.gather(1, y[:, None])[:, 0] - lse
    return margin, rest - lse[:, None], others


def cross_entropy(logits: Float[Tensor, "n C"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of each example.

    Args:
        logits: Outputs of the network.
        y: Labels.

    Returns:
        -log q_y in nats, float64; small losses keep their digits.
    """
    margin, _, _ = split_label(logits, y)
    return torch.nn.functional.softplus(-margin, threshold=700)  # softplus returns its input above the threshold


def residuals(logits: Float[Tensor, "n C"], y: Int[Tensor, " n"]) -> Float[Tensor, "n C"]:
    """Gradient of the cross-entropy in the logits, softmax minus the one-hot label.

    Args:
        logits: Outputs of the network.
        y: Labels.

    Returns:
        -b at the label and b q' elsewhere, float64: q - onehot(y) would lose every digit of a confident example.
    """
    margin, log_rest, others = split_label(logits, y)
    b = torch.sigmoid(-margin)[:, None]
    r = torch.empty_like(logits, dtype=torch.float64)
    return r.scatter_(1, others, b * log_rest.exp()).scatter_(1, y[:, None], -b)


def hessian_factor(logits: Float[Tensor, "n C"], y: Int[Tensor, " n"]) -> Float[Tensor, "n C-1 C"]:
    """A factor L of every example's softmax Hessian: L^T L = diag(q) - q q^T.

    Args:
        logits: Outputs of the network.
        y: Labels; any label gives the same L^T L, the true one makes the residual -exp(-m/2) times the first row.

    Returns:
        L, float64. Row 1 is sqrt(a b) (onehot(y) - q'); the others are sqrt(b) times an orthonormal basis of the complement
        of s' = sqrt(q'), scaled by s'.
    """
    n, C = logits.shape
    margin, log_rest, others = split_label(logits, y)
    margin = margin.clamp(min=LOWEST_MARGIN)
    a, b = torch.sigmoid(margin), torch.sigmoid(-margin)
    s = (log_rest / 2).exp()  # [n, C-1], unit length
    first = -(a * b).sqrt()[:, None] * s.square()
    v = s.clone()
    v[:, -1] += 1  # Householder vector of the reflection that sends s to -e_last
    reflection = torch.eye(C - 1, dtype=s.dtype, device=s.device) - v[:, :, None] * (
        2 / v.square().sum(1)[:, None, None] * v[:, None, :]
    )
    within = b.sqrt()[:, None, None] * reflection[:, : C - 2, :] * s[:, None, :]  # symmetric: rows are columns
    rows = torch.cat([first[:, None, :], within], dim=1)  # [n, C-1, C-1], over the other classes
    L = torch.zeros(n, C - 1, C, dtype=s.dtype, device=s.device)
    L.scatter_(2, others[:, None, :].expand(-1, C - 1, -1), rows)
    L[torch.arange(n, device=s.device), 0, y] = (a * b).sqrt()
    return L


def contrasts(C: int, device: torch.device | str = "cpu") -> Float[Tensor, "C C-1"]:
    """An orthonormal basis of the vectors that sum to zero (Helmert's): the softmax does not see the rest.

    Args:
        C: Number of classes.
        device: Where to put it.

    Returns:
        E, float64, with E^T E = I and E^T 1 = 0.
    """
    E = torch.zeros(C, C - 1, dtype=torch.float64, device=device)
    for j in range(1, C):
        E[:j, j - 1] = 1.0
        E[j, j - 1] = -j
        E[:, j - 1] /= (j * (j + 1)) ** 0.5
    return E
