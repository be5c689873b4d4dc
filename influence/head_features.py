"""The row space of the train features: found by the cheapest test that is sure of its answer."""

from __future__ import annotations

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from .blas import normal_matrix, one_thread
from .tiles import Tiles


def row_space(phi: Float[Tensor, "n A"]) -> Float[Tensor, "A k"] | None:
    """Orthonormal basis of the space that the train features span.

    Args:
        phi: Augmented features of the train set, float64.

    Returns:
        Basis in columns, without directions that are exactly dead or duplicated; None when every direction is there.
    """
    n, F = phi.shape
    if n >= F and independent(phi):
        return None
    alive = (phi != 0).any(0)
    if n >= F and not bool(alive.all()) and bool(alive.any()) and independent(phi[:, alive]):
        identity = torch.eye(F, dtype=phi.dtype, device=phi.device)
        return identity[:, alive].contiguous()
    return _by_singular_values(phi)


def independent(phi: Float[Tensor, "n A"]) -> bool:
    """Whether the columns are independent for sure, by a Cholesky factorisation of their Gram matrix.

    Args:
        phi: At least as many rows as columns, float64.

    Returns:
        True when its smallest singular value is beyond about 1e-6 of the largest. False may mean that it is hard to say.
    """
    k = phi.shape[1]
    G = normal_matrix(phi)
    trusted = 10 * k * torch.finfo(phi.dtype).eps  # relative; what is larger is no rounding of the Gram
    if G.is_cuda:
        lam = torch.linalg.eigvalsh(G)
        return bool(lam[0] > trusted * lam[-1])
    norm = float(G.abs().sum(0).max())
    if not norm < float("inf") or not Tiles([[G]]).factor_():
        return False
    with one_thread():
        reciprocal, info = scipy.linalg.lapack.dpocon(G.numpy().T, norm, uplo="U")
    return bool(info == 0 and reciprocal > trusted)


def _by_singular_values(phi: Tensor) -> Tensor:
    n, F = phi.shape
    if n < F:
        Q, R = torch.linalg.qr(phi.T)
        _, s, Wh = torch.linalg.svd(R.T, full_matrices=False)
        basis = Q @ Wh.T
    else:
        _, s, Vh = torch.linalg.svd(torch.linalg.qr(phi, mode="r").R, full_matrices=False)
        basis = Vh.T
    keep = s > max(n, F) * torch.finfo(phi.dtype).eps * s[0]
    keep[0] = True  # a space of nothing but zeros is scored as one whose curvature is zero
    chosen: Tensor = basis[:, keep].contiguous()
    return chosen
