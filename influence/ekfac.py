"""EK-FAC: the bases of K-FAC with eigenvalues measured in them."""

from __future__ import annotations

from dataclasses import dataclass

from .kronecker_curvature import KroneckerCurvature
from .kronecker_fit import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class EKFAC(KroneckerCurvature):
    """K-FAC with its eigenvalues measured: the mean squares of the per-example rows in its bases.

    Of all blocks that these bases diagonalise it is the closest to the exact one, so never further from it than K-FAC. Layers
    do not interact. The damping is added to each block as a whole, (H_l + damping I)^-1, in the unit of the mean
    curvature.

    Source: George et al. 2018, arXiv:1806.03884; for influence functions Grosse et al. 2023, arXiv:2308.03296.
    """

    @property
    def kind(self) -> Kind:
        """Where the eigenvalues come from."""
        return "ekfac"
