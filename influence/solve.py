"""Symmetric eigendecompositions and what may be inverted in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from .. import UsageError
from .errors import SolveError
from .spectrum import Spectrum

Negative = Literal["invert", "drop"]
SMALL = 1_000
EVD_LIMIT = 32_766  # above, LAPACK's divide and conquer asks for a work array whose length overflows 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """What to do with each eigenvalue."""

    damping: float = 0.0
    """Added to every eigenvalue; same unit as the curvature."""
    rcond: float | None = None
    """Cutoff relative to the largest absolute eigenvalue; None: size times rounding unit, and no cutoff when damped."""
    absolute: float | None = None
    """Cutoff in the unit of the curvature, instead of a relative one."""
    negative: Negative = "invert"
    """Negative eigenvalues beyond the cutoff: inverted, as a Moore-Penrose inverse does, or dropped."""

    def __post_init__(self) -> None:
        for name in ("damping", "rcond", "absolute"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and np.isfinite(value)):  # catches NaN too
                raise UsageError(f"{name} must be a finite number >= 0, got {value}.")
        if self.rcond is not None and self.absolute is not None:
            raise UsageError(f"Give rcond or absolute, not both: got rcond={self.rcond} and absolute={self.absolute}.")
        if self.negative not in ("invert", "drop"):
            raise UsageError(f"negative must be 'invert' or 'drop', got {self.negative!r}.")

    def cutoff(self, lambda_max: float, size: int, eps: float) -> float:
        """The number that an eigenvalue's absolute value must exceed.

        Args:
            lambda_max: Largest absolute eigenvalue.
            size: Number of eigenvalues.
            eps: Rounding unit of what the curvature was accumulated from.

        Returns:
            The cutoff, in the unit of the curvature.
        """
        if self.absolute is not None:
            return self.absolute
        if self.rcond is not None:
            return self.rcond * lambda_max
        return 0.0 if self.damping > 0 else size * eps * lambda_max

    def scaled(self, factor: float, cutoff: float) -> Inversion:
        """The same rule with its damping, or its cutoff where there is no damping, multiplied.

        Args:
            factor: What to multiply by.
            cutoff: The cutoff in force, in the unit of the curvature.

        Returns:
            The changed rule.
        """
        if self.damping > 0:
            return Inversion(
                damping=self.damping * factor, rcond=self.rcond, absolute=self.absolute, negative=self.negative
            )
        return Inversion(absolute=cutoff * factor, negative=self.negative)


@dataclass(frozen=True, slots=True, eq=False)
class Eigen:
    """H = V diag(lam) V^T, a symmetric mean curvature."""

    lam: Float[Tensor, " size"]
    """Eigenvalues, descending, float64."""
    V: Float[Tensor, "rows columns"]
    """Eigenvectors in the columns; none of them where only the eigenvalues were wanted."""
    eps: float
    """Rounding unit of what H was accumulated from: below `size * eps * lambda_max` an eigenvalue is noise."""

    def inverse(self, rule: Inversion) -> Float[Tensor, " size"]:
        """The diagonal of the inverse in the eigenbasis.

        Args:
            rule: Damping and cutoff.

        Returns:
            For each eigenvalue 1 / (lam + damping), or zero where it is not inverted.

        Raises:
            SolveError: Damping is asked for, and some lam + damping is not positive.
        """
        keep = self._kept(rule)
        shifted = self.lam + rule.damping
        if rule.damping > 0 and bool((keep & (shifted <= 0)).any()):
            raise SolveError(
                f"The curvature is indefinite: its smallest eigenvalue is {float(self.lam[-1]):.3g}, and with damping "
                f"{rule.damping:g} it is still not positive. Take a damping above {-float(self.lam[-1]):.3g}, or "
                "negative='drop'."
            )
        return torch.where(keep, 1 / torch.where(keep, shifted, 1.0), 0.0)

    def spectrum(self, rule: Inversion) -> Spectrum:
        """The facts to report.

        Args:
            rule: Damping and cutoff.

        Returns:
            Everything of `Spectrum` but the sensitivity, which needs scores.
        """
        lam = self.lam.cpu().numpy()
        keep = self._kept(rule).cpu().numpy()
        kept = np.abs(lam[keep] + rule.damping)
        trace = np.abs(lam).sum()
        cutoff = self.cutoff(rule)
        return Spectrum(
            size=lam.size,
            rank=int(keep.sum()),
            cutoff=cutoff,
            damping=rule.damping,
            lambda_max=float(lam[0]),
            lambda_min=float(lam[-1]),
            smallest_kept=float(kept.min()) if kept.size else float("nan"),
            condition=float(kept.max() / kept.min()) if kept.size else float("nan"),
            trace_kept=float(np.abs(lam[keep]).sum() / trace) if trace > 0 else 1.0,
            negative=int((lam < -max(cutoff, lam.size * self.eps * np.abs(lam).max())).sum()),
            negative_trace=float(np.abs(lam[lam < 0]).sum() / trace) if trace > 0 else 0.0,
            eigenvalues=lam,
        )

    def cutoff(self, rule: Inversion) -> float:
        """The cutoff in force.

        Args:
            rule: Damping and cutoff.

        Returns:
            The number that an eigenvalue's absolute value must exceed to be inverted.
        """
        return rule.cutoff(float(self.lam.abs().max()), len(self.lam), self.eps)

    def _kept(self, rule: Inversion) -> Tensor:
        magnitude = self.lam if rule.negative == "drop" else self.lam.abs()
        if rule.damping > 0 and rule.rcond is None and rule.absolute is None:
            # (H + damping I)^-1: nothing is cut, except what "drop" was asked to
            noise = len(self.lam) * self.eps * float(self.lam.abs().max())
            return self.lam >= -noise if rule.negative == "drop" else torch.ones_like(self.lam, dtype=torch.bool)
        return magnitude > self.cutoff(rule)  # '>': a zero curvature maps to zero, not to infinity


def eigendecompose(H: Float[Tensor, "size size"], eps: float, *, vectors: bool = True) -> Eigen:
    """Decompose a symmetric matrix in float64.

    Args:
        H: The mean curvature; only its symmetric part is used.
        eps: Rounding unit of what it was accumulated from.
        vectors: Eigenvectors too; without them the result has none and cannot be applied, only reported.

    Returns:
        Eigenvalues in descending order with their vectors, on the device of H.

    Raises:
        SolveError: H holds NaN or infinity, or LAPACK did not converge.
    """
    H = H.to(torch.float64)
    H = (H + H.T) / 2
    if not bool(torch.isfinite(H).all()):
        raise SolveError(
            "The curvature holds NaN or infinite entries; look for such values in the weights or the data."
        )
    if H.is_cuda:
        lam, V = torch.linalg.eigh(H) if vectors else (torch.linalg.eigvalsh(H), H.new_empty(0, 0))
    else:
        try:
            # threads only slow a small matrix down, and a hundredfold on a machine that is busy with something else
            with threadpool_limits(1 if len(H) <= SMALL else None, user_api="blas"):
                lam, V = _lapack(H.numpy().astype(np.float64, copy=False), vectors=vectors)
        except scipy.linalg.LinAlgError as error:
            raise SolveError(f"The eigendecomposition of the {len(H)} x {len(H)} curvature failed: {error}.") from error
    return Eigen(lam.flip(0), V.flip(1), eps)


def _lapack(H: NDArray[np.float64], *, vectors: bool) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues, and vectors when they are wanted; H is overwritten."""
    if not vectors:
        return torch.from_numpy(scipy.linalg.eigvalsh(H, check_finite=False, overwrite_a=True)), torch.empty(0, 0)
    driver: Literal["evd", "evr"] = "evd" if len(H) <= EVD_LIMIT else "evr"
    lam, V = scipy.linalg.eigh(H, driver=driver, check_finite=False, overwrite_a=True)
    return torch.from_numpy(lam), torch.from_numpy(V)
