"""Means with intervals of 95%: over seeds by Student's t; for a single seed over its queries, and said to be so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..influence.ranking import wilson

LEVEL = 0.95
SEEDS, WILSON, QUERIES, NONE = "t over seeds", "Wilson over examples", "normal over examples", "none"


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Means with their intervals, one for each point of a curve; NaN limits where nothing gives an interval."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    seeds: int
    basis: str
    """Where the interval comes from."""

    def first(self) -> dict[str, Any]:
        """The first point.

        Returns:
            Mean, low, high, seeds and basis as plain values.
        """
        point = {name: float(getattr(self, name)[0]) for name in ("mean", "low", "high")}
        return {**point, "seeds": self.seeds, "basis": self.basis}


def mean_over_seeds(shares: Mapping[int, NDArray[Any]]) -> Estimate:
    """Mean share over seeds: mean +- t(0.975, s - 1) sd / sqrt(s), not cut at 0 or 1; for one seed Wilson's interval.

    Args:
        shares: By seed: what every example adds to the share, 0 to 1, [examples, points]; or a known share [points].

    Returns:
        One estimate a point.
    """
    if len(shares) == 1:
        (only,) = shares.values()
        if only.ndim == 1:
            return _without(only.astype(np.float64))
        rate = only.mean(axis=0, dtype=np.float64)
        return Estimate(rate, *wilson(rate, len(only)), 1, WILSON)
    return _student(np.stack([_share(part) for part in shares.values()]))


def mean_difference(shares: Mapping[int, NDArray[Any]], base: Mapping[int, NDArray[Any]]) -> Estimate | None:
    """Mean difference over the seeds that both have, seed by seed, so that what both share cancels.

    Args:
        shares: As for `mean_over_seeds`.
        base: The same of what is taken away; with one common seed its examples must be the same ones.

    Returns:
        The estimate, or None when no seed is common.
    """
    common = sorted(shares.keys() & base.keys())
    if not common:
        return None
    if len(common) > 1:
        return _student(np.stack([_share(shares[seed]) - _share(base[seed]) for seed in common]))
    one, other = shares[common[0]], base[common[0]]
    if one.ndim == 1 or other.ndim == 1 or len(one) != len(other) or len(one) < 2:
        return _without(_share(one) - _share(other))
    differences = one.astype(np.float64) - other
    mean = differences.mean(axis=0)
    half = stats.norm.ppf((1 + LEVEL) / 2) * differences.std(axis=0, ddof=1) / np.sqrt(len(differences))
    return Estimate(mean, mean - half, mean + half, 1, QUERIES)


def _share(part: NDArray[Any]) -> NDArray[np.float64]:
    return part.astype(np.float64) if part.ndim == 1 else part.mean(axis=0, dtype=np.float64)


def _student(values: NDArray[np.float64]) -> Estimate:
    """Interval of the mean of [seeds, points]."""
    seeds = len(values)
    mean = values.mean(axis=0)
    half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return Estimate(mean, mean - half, mean + half, seeds, SEEDS)


def _without(mean: NDArray[np.float64]) -> Estimate:
    unknown = np.full_like(mean, np.nan)
    return Estimate(mean, unknown, unknown, 1, NONE)
