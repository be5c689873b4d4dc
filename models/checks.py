"""Checks that the settings of this folder share: what was found, and what is wanted, in one sentence."""

from __future__ import annotations

import math

from .. import UsageError


def require(good: bool, found: str, wanted: str) -> None:
    """Refuse what is not good.

    Args:
        good: Whether it is.
        found: What it is.
        wanted: What it should be.

    Raises:
        UsageError: It is not.
    """
    if not good:
        raise UsageError(f"{found}; {wanted}.")


def positive_int(name: str, value: int, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`."""
    require(
        isinstance(value, int) and value >= least, f"{name} is {value!r}", f"give a whole number of at least {least}"
    )


def number(name: str, value: float, *, zero: bool = True) -> None:
    """Refuse what is no finite number >= 0, or > 0 without `zero`."""
    good = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
    require(good, f"{name} is {value!r}", f"give a finite number {'>= 0' if zero else '> 0'}")
