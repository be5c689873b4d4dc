"""One damping, or a list of them: what a curvature may be given, and what the scores of each are called in a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from .. import UsageError

Damping = float | Literal["auto"]
AUTO_SHARE = 1_000  # damping="auto" is the largest eigenvalue over this, or so many weight decays when that is more
AUTO_DECAYS = 3
PREFIX = "damping="
"""Before the value, in the name of a variant."""


def automatic(lambda_max: float, weight_decay: float | None, *, head: bool) -> float:
    """What "auto" stands for: the rule with the smallest regret on the tasks of docs/benchmarks.md, where it was chosen.

    Args:
        lambda_max: Largest eigenvalue of the curvature.
        weight_decay: L2 penalty of the training, when known.
        head: The head alone is analysed, so that the objective is convex and its penalty is the exact damping.

    Returns:
        Of a head the weight decay, where there is one; else three weight decays or a 1,000th of the largest eigenvalue, whichever
        is more.
    """
    decay = weight_decay or 0.0
    return decay if head and decay else max(AUTO_DECAYS * decay, lambda_max / AUTO_SHARE)


def checked(damping: Any, *, auto: bool = False) -> Damping | tuple[Damping, ...]:
    """What a curvature keeps of the damping it was given; that numbers are not negative is checked where they are used.

    Args:
        damping: A number, "auto", or any sequence of these.
        auto: Whether the curvature has a rule of its own for "auto".

    Returns:
        The damping itself, also where it is the only one of a list; or a tuple of two or more.

    Raises:
        UsageError: An entry is no number, a list is empty, or names a damping twice.
    """
    if isinstance(damping, str) or not isinstance(damping, Iterable) or getattr(damping, "ndim", 1) == 0:
        return _one(damping, auto)
    several = tuple(_one(entry, auto) for entry in damping)
    if not several:
        raise UsageError("damping is an empty list; give one number at least.")
    twice = [entry for i, entry in enumerate(several) if entry in several[:i]]
    if twice:
        raise UsageError(f"damping names {twice[0]} twice; give each value once.")
    return several if len(several) > 1 else several[0]


def check_positive(damping: Any, name: str) -> None:
    """Refuse what leaves an approximate curvature singular.

    Args:
        damping: What `checked` gave.
        name: The curvature.

    Raises:
        UsageError: A damping is zero, negative or not finite.
    """
    for one in each(damping):
        if one != "auto" and not 0 < one < float("inf"):  # catches NaN too
            raise UsageError(f"{name} needs a finite damping > 0, got {one}; give a positive number, or 'auto'.")


def chosen_damping(damping: Damping, lambda_max: float, weight_decay: float | None, *, head: bool) -> float:
    """The number that a damping stands for.

    Args:
        damping: A number or "auto".
        lambda_max: Largest eigenvalue of the curvature.
        weight_decay: As for `automatic`.
        head: Likewise.

    Returns:
        For "auto" what `automatic` gives.
    """
    return automatic(lambda_max, weight_decay, head=head) if damping == "auto" else float(damping)


def _one(damping: Any, auto: bool) -> Damping:
    if damping == "auto" and auto:
        return "auto"
    try:
        if isinstance(damping, str):
            raise TypeError
        return float(damping)
    except (TypeError, ValueError):
        wanted = "a number or 'auto'" if auto else "a number"
        mend = " There is no rule 'auto' for this curvature." if damping == "auto" else ""
        raise UsageError(f"damping must be {wanted}, got {damping!r}.{mend}") from None


def each(damping: Any) -> tuple[Any, ...]:
    """Every damping of a curvature.

    Args:
        damping: What `checked` gave.

    Returns:
        One or more.
    """
    return damping if isinstance(damping, tuple) else (damping,)


def single(damping: Any) -> Any:
    """The damping of a curvature that is to be fitted.

    Args:
        damping: What `checked` gave.

    Returns:
        The one it has.

    Raises:
        UsageError: It has several.
    """
    if isinstance(damping, tuple):
        raise UsageError(
            f"This curvature has {len(damping)} dampings and is fitted for each of them by upweight.attribute; to fit it "
            "yourself give one."
        )
    return damping


def variant_name(damping: float | str) -> str:
    """What the scores at a damping are called in a store.

    Args:
        damping: A number or "auto".

    Returns:
        As "damping=0.01": six digits, or as many as tell the number from every other.
    """
    if isinstance(damping, str):
        return f"{PREFIX}{damping}"
    short = f"{damping:g}"
    exact = repr(float(damping))
    return PREFIX + (short if repr(float(short)) == exact else exact)


def damping_of(name: str) -> Damping | None:
    """The inverse of `variant_name`, for any way to write a number.

    Args:
        name: Name of a variant.

    Returns:
        The damping; None for a variant that is not called after one.
    """
    if not name.startswith(PREFIX):
        return None
    value = name.removeprefix(PREFIX)
    try:
        return "auto" if value == "auto" else float(value)
    except ValueError:
        return None
