"""The Gauss-Newton matrix from one multiplication with random vectors: Nystroem's approximation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import product
from .errors import SolveError
from .low_rank import PROBES, STEPS, LeftOut, LowRank, gaussian, look_outside
from .row_products import mean_products
from .side import Side
from .solve import Eigen
from .work import Work

TRIES = 6  # shifts, each ten times the one before, until the core is positive definite


@dataclass(frozen=True, slots=True, kw_only=True)
class Nystroem(LowRank):
    """H ~ (H W) (W^T H W)^+ (H W)^T for a random W [p, rank]: never above the Gauss-Newton matrix H, and H itself at its rank.

    One sweep over the train set multiplies H with all of W, by the shift of Frangella et al. whatever the rank; three more
    with 8 random vectors estimate the largest eigenvalue that is left out. For cross-entropy.

    Source: Frangella, Tropp and Udell 2021, arXiv:2110.02820, algorithm 2.1.
    """

    def _decompose(self, train: Side, work: Work) -> tuple[Eigen, LeftOut, tuple[str, ...]]:
        p, device = train.problem.p, train.logits.device
        k = min(self.rank, p)
        generator = torch.Generator().manual_seed(self.seed)
        operator = mean_products(train, columns=k, sweeps=1 + STEPS * PROBES // k, work=work)
        W = independent_vectors(p, k, generator, device)
        eps = torch.finfo(torch.float64 if train.problem.linear else train.problem.dtype).eps
        lam, V = nystroem(operator(W), W, eps)
        return Eigen(lam, V, eps), look_outside(operator, lam, V, generator), ()


def nystroem(
    HW: Float[Tensor, "p k"], W: Float[Tensor, "p k"], eps: float
) -> tuple[Float[Tensor, " k"], Float[Tensor, "p k"]]:
    """Eigenvalues and vectors of (H W) (W^T H W)^+ (H W)^T.

    Args:
        HW: H times the test vectors, float64.
        W: The test vectors, far from dependent.
        eps: Rounding unit of the products.

    Returns:
        Eigenvalues, descending and never negative, and orthonormal vectors.

    Raises:
        SolveError: H is not positive semi-definite to rounding, or not finite.
    """
    shift = eps * max(float(HW.norm()), torch.finfo(torch.float64).tiny)
    for _ in range(TRIES):
        shifted = HW + shift * W
        core = product(W.T, shifted)
        L, info = torch.linalg.cholesky_ex((core + core.T) / 2)
        if int(info) == 0 and bool(torch.isfinite(L).all()):
            break
        shift *= 10
    else:
        raise SolveError(
            "The Gauss-Newton matrix is not positive semi-definite to rounding on the random vectors; take dtype float64, or "
            "look for infinite values in the weights."
        )
    B = torch.linalg.solve_triangular(L, shifted.T, upper=False).T  # B B^T is the approximation of H + shift
    Q, R = torch.linalg.qr(B)
    U, s, _ = torch.linalg.svd(R)
    lam: Tensor = (s**2 - shift).clamp(min=0.0)
    return lam, product(Q, U)


def independent_vectors(p: int, k: int, generator: torch.Generator, device: torch.device) -> Float[Tensor, "p k"]:
    """Gaussian vectors of about unit length; orthonormal where there are too many to be far from dependent by chance.

    Args:
        p: Their length.
        k: How many; at most p.
        generator: Of the draws.
        device: Where to put them.

    Returns:
        Columns, float64.
    """
    W = gaussian(p, k, generator, device)
    found: Tensor = W / p**0.5 if 4 * k <= p else torch.linalg.qr(W).Q
    return found
