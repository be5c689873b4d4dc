"""K-FAC: the curvature of a layer as the product of two small ones."""

from __future__ import annotations

from dataclasses import dataclass

from .kronecker_curvature import KroneckerCurvature
from .kronecker_fit import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class KFAC(KroneckerCurvature):
    """Kronecker-factored Gauss-Newton matrix, exact in expectation over the network's labels.

    For each Linear and Conv2d it is the mean square of the gradients at its output times that of its inputs: layers do not
    interact, inputs and gradients are taken as independent, and so are the positions of an image. The damping is
    added to each block as a whole, (H_l + damping I)^-1, in the unit of the mean curvature. Exact for one layer with one
    position and one example, or where all inputs of the layer are the same.

    Source: Martens and Grosse 2015, arXiv:1503.05671; for convolutions Grosse and Martens 2016, arXiv:1602.01407.
    """

    @property
    def kind(self) -> Kind:
        """Where the eigenvalues come from."""
        return "kfac"
