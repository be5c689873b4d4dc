"""What can go wrong between tensors and scores."""

from .. import UpweightError


class ShapeError(UpweightError):
    """Two things that must fit each other do not: logits and labels, gradients and parameters, model and data."""


class SolveError(UpweightError):
    """A curvature cannot be formed, inverted or trusted for this model and data."""
