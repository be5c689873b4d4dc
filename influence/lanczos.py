"""The eigenvectors of largest eigenvalues, of the Gauss-Newton matrix or the true Hessian, by block Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import product
from .low_rank import LeftOut, LowRank, gaussian, look_outside
from .products import Kind
from .row_products import mean_products
from .side import Side
from .solve import Eigen, Negative
from .work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanczos(LowRank):
    """H ~ V diag(e) V^T with the Ritz pairs of largest absolute value in a Krylov space of H, by block Lanczos.

    Every basis vector is kept orthogonal to all others, in float64. A Ritz pair's residual |H v - e v| bounds the distance of e
    from an eigenvalue; those that have not converged are told.

    Source: Golub and Underwood 1977; in influence functions Schioppa et al. 2022, arXiv:2112.03052 (Arnoldi).
    """

    curvature: Kind = "ggn"
    """"ggn", the Gauss-Newton matrix, for cross-entropy; "hessian", the true Hessian of any loss, perhaps indefinite."""
    subspace: int | None = None
    """Dimension of the Krylov space at most; None: twice the rank and two blocks."""
    block: int = 16
    """Vectors that are multiplied at a time; no more eigenvalues can be equal without one being missed."""
    rtol: float = 1e-4
    """Converged is a pair whose residual is below this share of the largest absolute eigenvalue; reached by all, it stops. The
    automatic damping is a share of 3e-3."""
    negative: Negative = "invert"
    """Negative eigenvalues: "invert", refused where the damping does not lift them above zero, or "drop", with their part of the
    gradients."""

    def __post_init__(self) -> None:
        super(Lanczos, self).__post_init__()  # slots make another class of this one
        if self.curvature not in ("ggn", "hessian"):
            raise UsageError(f"curvature must be 'ggn' or 'hessian', got {self.curvature!r}.")
        if self.block < 1:
            raise UsageError(f"block must be at least 1, got {self.block}.")
        if self.subspace is not None and self.subspace < self.rank:
            raise UsageError(f"subspace must be at least the rank {self.rank}, got {self.subspace}.")
        if not 0 < self.rtol < 1:
            raise UsageError(f"rtol must lie between 0 and 1, got {self.rtol}.")

    def dimension(self, p: int) -> int:
        """Of the Krylov space, at most.

        Args:
            p: Number of analysed parameters.

        Returns:
            Never above p.
        """
        return min(p, 2 * (self.rank + self.block) if self.subspace is None else self.subspace)

    @property
    def _negative(self) -> Negative:
        return self.negative

    def _decompose(self, train: Side, work: Work) -> tuple[Eigen, LeftOut, tuple[str, ...]]:
        p, device = train.problem.p, train.logits.device
        rank, block = min(self.rank, p), min(self.block, p)
        most = self.dimension(p)
        generator = torch.Generator().manual_seed(self.seed)
        operator = mean_products(train, self.curvature, columns=block, sweeps=max(1, most // block), work=work)
        found = block_lanczos(operator, p, rank, most, block, self.rtol, generator, device)
        lam, order = found.lam.sort(descending=True)
        eps = torch.finfo(torch.float64 if train.problem.linear else train.problem.dtype).eps
        eigen = Eigen(lam, found.V[:, order], eps)
        left_out = look_outside(operator, lam, eigen.V, generator)
        if self.curvature == "hessian" and rank < p:
            left_out = LeftOut(left_out.norm, float("nan"))  # of both signs: its trace is no share of anything
        return eigen, left_out, found.said(self.rtol)


@dataclass(frozen=True, slots=True, eq=False)
class Ritz:
    """What a Krylov space knows of the eigenpairs of largest absolute value."""

    lam: Float[Tensor, " k"]
    V: Float[Tensor, "p k"]
    residual: Float[Tensor, " k"]
    """|H v - e v|."""
    dimension: int
    """Of the space."""

    def said(self, rtol: float) -> tuple[str, ...]:
        """What to say of pairs that have not converged.

        Args:
            rtol: Largest residual of a converged one, in units of the largest absolute eigenvalue.

        Returns:
            One sentence or none.
        """
        largest = float(self.lam.abs().max())
        open_ = int((self.residual > rtol * largest).sum())
        if not open_:
            return ()
        return (
            f"Lanczos: {open_} of {len(self.lam)} eigenpairs have not converged in {self.dimension} dimensions; the largest "
            f"residual is {float(self.residual.max()):.2g}, {float(self.residual.max()) / largest:.2g} of the largest "
            f"eigenvalue where {rtol:g} was asked. Raise subspace, or lower the rank.",
        )


def block_lanczos(
    operator: Callable[[Tensor], Tensor],
    p: int,
    rank: int,
    most: int,
    block: int,
    rtol: float,
    generator: torch.Generator,
    device: torch.device,
) -> Ritz:
    """The eigenpairs of largest absolute value of a symmetric operator.

    Args:
        operator: Vectors [p, b] to vectors.
        p: Their length.
        rank: Pairs that are wanted.
        most: Dimension of the Krylov space at most, not below `rank`.
        block: Vectors that are multiplied at a time.
        rtol: It stops once every residual is below this share of the largest absolute eigenvalue.
        generator: Of the first vectors.
        device: Where it works.

    Returns:
        The pairs, by falling absolute value.
    """
    Q = torch.empty(p, most, dtype=torch.float64, device=device)
    T = torch.zeros(most, most, dtype=torch.float64, device=device)
    new, size, looked = torch.linalg.qr(gaussian(p, block, generator, device)).Q, 0, 0
    while True:
        new = new[:, : most - size]
        here = slice(size, size + new.shape[1])
        Q[:, here], size = new, here.stop
        basis = Q[:, :size]
        Z = operator(new)
        h = product(basis.T, Z)
        T[:size, here], T[here, :size] = h, h.T
        Z = Z - product(basis, h)
        Z -= product(basis, product(basis.T, Z))
        R = torch.linalg.qr(Z).R
        last = size == most
        if last or (size >= rank and size >= 1.1 * looked):  # looking at all pairs takes longer and longer
            looked = size
            lam, S = torch.linalg.eigh((T[:size, :size] + T[:size, :size].T) / 2)
            chosen = lam.abs().argsort(descending=True)[:rank]
            lam, S = lam[chosen], S[:, chosen]
            residual = (R @ S[here]).norm(dim=0)
            if last or bool((residual <= rtol * lam.abs().max()).all()):
                return Ritz(lam, product(basis, S), residual, size)
        new = _orthogonal(Z, R, basis, generator)


def _orthogonal(Z: Tensor, R: Tensor, basis: Tensor, generator: torch.Generator) -> Float[Tensor, "p b"]:
    """Orthonormal vectors from Z and orthogonal to the basis; random ones where nothing new is in it."""
    gone = R.diagonal().abs() <= 1e-13 * float(R.abs().max()) + torch.finfo(torch.float64).tiny
    Z[:, gone] = gaussian(len(Z), int(gone.sum()), generator, Z.device)
    for _ in range(2):
        Z = torch.linalg.qr(Z).Q
        Z = Z - product(basis, product(basis.T, Z))
    basis_of_rest: Tensor = torch.linalg.qr(Z).Q
    return basis_of_rest
