"""(K + lam I)^-1 by a Cholesky factor, and the ends of a spectrum without the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from .blas import cholesky_, product
from .errors import SolveError
from .tiles import Tiles

RESIDUAL = 1e-6  # relative residual of a damped solve above which it is refused
PROBES = 4  # random mixtures of the right-hand sides that the residual is measured on
SINGLE_CONDITION = 1e5  # up to which a float32 factor tells how neighbours move
WIDTH, STEPS = 8, 12  # of the Lanczos iteration: vectors, and applications to them at most


@dataclass(frozen=True, slots=True, eq=False)
class Cholesky:
    """matrix + damping I = L L^T."""

    L: Float[Tensor, "size size"]
    """Lower triangle; what lies above it means nothing."""
    damping: float

    def solve(self, M: Float[Tensor, "size b"]) -> Float[Tensor, "size b"]:
        """The inverse times some vectors.

        Args:
            M: Right-hand sides, float64; a float32 factor gets them in units of their own.

        Returns:
            The solutions, float64.
        """
        if self.L.dtype == torch.float64:
            return self._solve(M)
        size = M.abs().amax(0)
        size = torch.where(size > 0, size, 1.0)
        return self._solve((M / size).to(self.L.dtype)).double() * size

    def _solve(self, M: Tensor) -> Tensor:
        if self.L.is_cuda:
            return torch.cholesky_solve(M, self.L)
        X = M.clone(memory_format=torch.contiguous_format)
        Tiles([[self.L]]).solve_(X)
        return X

    def inverse(self) -> Float[Tensor, "size size"]:
        """The whole inverse.

        Returns:
            Its lower triangle; what lies above it means nothing. float64.
        """
        if self.L.is_cuda:
            return torch.cholesky_inverse(self.L).double()
        # the lower triangle in the rows of memory is the upper one in its columns
        found, _ = scipy.linalg.lapack.dpotri(self.L.double().clone().numpy().T, lower=False, overwrite_c=True)
        return torch.from_numpy(found).T

    def inverse_blocks(self, R: int) -> Float[Tensor, "n R R"]:
        """The diagonal blocks of the inverse.

        Args:
            R: Rows of a block.

        Returns:
            One matrix a block, float64.
        """
        size = len(self.L)
        if self.L.is_cuda:
            eye = torch.eye(size, dtype=self.L.dtype, device=self.L.device)
            W = torch.linalg.solve_triangular(self.L, eye, upper=False)
        else:
            inverse, _ = scipy.linalg.lapack.dtrtri(self.L.clone().numpy().T, lower=False, overwrite_c=True)
            W = torch.from_numpy(inverse).T  # L^-1
        blocks = torch.empty(size // R, R, R, dtype=torch.float64, device=self.L.device)
        for i in range(size // R):
            own = W[i * R :, i * R : (i + 1) * R].clone()  # what lies above is zero, and not what memory holds
            own[:R].tril_()
            blocks[i] = own.T @ own
        return blocks


def cholesky(matrix: Float[Tensor, "size size"], damping: float, dtype: torch.dtype = torch.float64) -> Cholesky:
    """Factor a damped matrix.

    Args:
        matrix: Symmetric positive semi-definite; kept as it is.
        damping: Added to its diagonal.
        dtype: To factor in.

    Returns:
        The factor.

    Raises:
        SolveError: It is not positive definite to rounding.
    """
    shifted = matrix.to(dtype, copy=True)
    shifted.diagonal().add_(damping)
    good = cholesky_(shifted) if shifted.is_cuda else Tiles([[shifted]]).factor_()
    if not good:
        raise SolveError(
            f"The curvature with damping {damping:g} is not positive definite to rounding; raise the damping."
        )
    return Cholesky(shifted, damping)


def check_residual(matrix: Tensor, damping: float, M: Float[Tensor, "size b"], X: Float[Tensor, "size b"]) -> None:
    """Refuse solutions that do not solve their system.

    Every right-hand side counts alike, however short; random mixtures of them show what any one of them does.

    Args:
        matrix: Symmetric.
        damping: Added to its diagonal.
        M: Right-hand sides.
        X: The solutions.

    Raises:
        SolveError: The relative residual is too large, or not a number.
    """
    lengths = M.norm(dim=0)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(M.shape[1], PROBES, generator=generator, dtype=M.dtype).to(M.device)
    mix /= torch.where(lengths > 0, lengths, 1.0)[:, None]
    wanted, Y = product(M, mix), product(X, mix)
    rest = float((wanted - product(matrix, Y) - damping * Y).norm())
    whole = max(float(wanted.norm()), 1e-300)
    if not rest <= RESIDUAL * whole:
        raise SolveError(
            f"The damped system has a relative residual of {rest / whole:.1e}; raise the damping or take float64."
        )


def largest_eigenvalue(
    operator: Callable[[Tensor], Tensor],
    size: int,
    device: torch.device | str = "cpu",
    *,
    steps: int = STEPS,
    rtol: float = 1e-8,
) -> float:
    """Largest eigenvalue of a positive semi-definite operator by block Lanczos.

    Args:
        operator: Vectors [size, b] to vectors, symmetric; float64.
        size: Length of a vector.
        device: Where it works.
        steps: Applications to a block of vectors, at most.
        rtol: It stops where one more application changes the value by less.

    Returns:
        A lower bound of the eigenvalue: close where it stands apart, some tenths low at worst where many are nearly as large.
    """
    width = min(WIDTH, size)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, width, generator=generator, dtype=torch.float64).to(device)
    basis = torch.linalg.qr(start).Q
    images = operator(basis)
    value = _largest_ritz(basis, images)
    for _ in range(min(steps, size // width) - 1):
        rest = images[:, -width:] - basis @ (basis.T @ images[:, -width:])
        new = torch.linalg.qr(rest).Q
        new = torch.linalg.qr(new - basis @ (basis.T @ new)).Q  # where nothing was left, noise must be orthogonal too
        basis = torch.cat([basis, new], dim=1)
        images = torch.cat([images, operator(new.contiguous())], dim=1)
        before, value = value, _largest_ritz(basis, images)
        if abs(value - before) <= rtol * abs(value):
            break
    return value


def _largest_ritz(basis: Tensor, images: Tensor) -> float:
    T = basis.T @ images
    return float(torch.linalg.eigvalsh((T + T.T) / 2)[-1])
