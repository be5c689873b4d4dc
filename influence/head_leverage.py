"""How much of its own fit a train example of the head carries, and its residual once that is gone.

One Newton step without example i multiplies its residual: r~_i = (I - S_i T_i / n)^-1 r_i, with T_i = phi~_i^T H_lam^-1 phi~_i,
the inverse contracted with its features, a matrix over pairs of classes. By Woodbury's formula this is L_i^T w~_i of the
leave-one-out correction, for any factor L_i of S_i = L_i^T L_i.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import product, side_by_side
from .errors import SolveError
from .head_hessian import SoftmaxHessian
from .head_inverse import Inverse


def corrected(inverse: Inverse, r: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], float]:
    """The residuals of train examples, corrected for their leverage.

    Args:
        inverse: Of the damped Hessian, in float64.
        r: Residuals in the logits that are kept.

    Returns:
        The corrected ones, and the largest leverage.

    Raises:
        SolveError: An example has a leverage of 1.
    """
    hessian = inverse.hessian
    n = len(r)
    S, T = _kept_curvatures(hessian), _contracted(inverse) / n
    lam, U = torch.linalg.eigh(S)
    root = U * lam.clamp(min=0).sqrt()[:, None, :]
    leverage = float(torch.linalg.eigvalsh(root.mT @ T @ root).max())
    if not leverage < 1:
        raise SolveError("An example has a leverage of 1: without it the fit is not determined; raise the damping.")
    eye = torch.eye(hessian.c, dtype=S.dtype, device=S.device)
    weights: Tensor = torch.linalg.solve(eye - S @ T, r[:, :, None])[:, :, 0]
    return weights, leverage


def _kept_curvatures(hessian: SoftmaxHessian) -> Float[Tensor, "n c c"]:
    """The softmax Hessians S_i in the logits that are kept."""
    q, rest = hessian.q[:, hessian.keep], hessian.rest[:, hessian.keep]
    S = -q[:, :, None] * q[:, None, :]
    S.diagonal(dim1=1, dim2=2).copy_(q * rest)
    return S


def _contracted(inverse: Inverse) -> Float[Tensor, "n c c"]:
    """psi_i^T H^-1 psi_i for every pair of classes: the inverse is formed a few columns at a time."""
    hessian = inverse.hessian
    psi, c = hessian.psi, hessian.c
    n, k = psi.shape
    T = psi.new_empty(n, c, c)
    for group in hessian.groups:
        columns = inverse.columns(group)  # from the first class of the group on
        pairs = [(a, b) for b in range(group.start, group.stop) for a in range(b, c)]

        def contract(pair: tuple[int, int], columns: Tensor = columns, first: int = group.start) -> None:
            a, b = pair
            values = (product(psi, columns[a - first, :, b - first]) * psi).sum(1)
            T[:, a, b] = values
            T[:, b, a] = values

        side_by_side(contract, pairs, 2.0 * n * k * k * len(pairs), psi.device)
    return T
