"""What a curvature looked like and what its inverse kept: the facts stored and shown with every set of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Facts of the analysed curvature, the mean over the train set, in nats per squared unit of parameter."""

    size: int
    """Number of eigenvalues: the dimension of the space the curvature was decomposed in."""
    rank: int
    """How many eigenvalues are inverted."""
    cutoff: float
    """An eigenvalue is inverted when its absolute value is above this."""
    damping: float
    """Added to every eigenvalue before it is inverted."""
    lambda_max: float
    """Largest eigenvalue, without the damping."""
    lambda_min: float
    """Smallest eigenvalue, without the damping; below zero only for an indefinite Hessian."""
    smallest_kept: float
    """Inverted eigenvalue of smallest absolute value, damping added; NaN when nothing is kept."""
    condition: float
    """Largest over smallest absolute inverted eigenvalue, damping added; NaN when nothing is kept."""
    trace_kept: float
    """Share of the sum of absolute eigenvalues that the inverted ones hold, between 0 and 1."""
    negative: int
    """Number of eigenvalues below minus the cutoff."""
    negative_trace: float
    """Share of the sum of absolute eigenvalues held by negative ones."""
    left_out: float | None = None
    """Largest absolute eigenvalue of what a curvature of low rank leaves out, estimated; None: nothing is left out."""
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    """What a cutoff or damping ten times smaller or larger would change: `top1_changed_at_0.1x` is the share of queries with
    another first neighbour, `top5_changed_at_10x` the mean share of the first five that is replaced."""
    eigenvalues: NDArray[np.float64] | None = None
    """All eigenvalues, descending, without the damping."""

    @classmethod
    def of_ends(cls, size: int, damping: float, largest: float, lowest: float) -> Spectrum:
        """The facts of a damped positive semi-definite curvature of which only both ends are known.

        Args:
            size: Number of eigenvalues.
            damping: Added to every one.
            largest: The largest of them.
            lowest: The smallest of them.

        Returns:
            The facts; nothing is cut.
        """
        return cls(
            size=size,
            rank=size,
            cutoff=0.0,
            damping=damping,
            lambda_max=largest,
            lambda_min=lowest,
            smallest_kept=lowest + damping,
            condition=(largest + damping) / (lowest + damping),
            trace_kept=1.0,
            negative=0,
            negative_trace=0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """The facts alone, ready for JSON.

        Returns:
            Every field but `eigenvalues`, and but those that are None.
        """
        facts = asdict(replace(self, eigenvalues=None))
        del facts["eigenvalues"]
        if self.left_out is None:
            del facts["left_out"]
        facts["sensitivity"] = dict(self.sensitivity)
        return facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], eigenvalues: NDArray[np.float64] | None = None) -> Spectrum:
        """The inverse of `to_dict`.

        Args:
            facts: What `to_dict` gave.
            eigenvalues: All eigenvalues, descending, when they were kept.

        Returns:
            The same facts.
        """
        return cls(**{**facts, "eigenvalues": eigenvalues})
