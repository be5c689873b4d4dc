"""What tells the runs of one source apart: an arm of a comparison is a source, and what was done otherwise with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runs import RunView

ORDINARY = ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay")
"""Settings that every recipe has: named only where two runs would be the same without them."""


def arm_marks(runs: Sequence[RunView], *, across_k: bool = False) -> list[str]:
    """What tells each run from others of its source: as little as is needed to tell all of them apart.

    Args:
        runs: All runs of a report.
        across_k: Runs of different k are compared with each other, so that k belongs to the mark.

    Returns:
        Words for each run; empty ones where it is plain, or where all of them share one recipe.
    """
    recipes = len({run.recipe for run in runs}) > 1
    parts = [[f"k = {run.k}"] * across_k + [run.recipe] * (recipes and bool(run.recipe)) for run in runs]
    places = Counter((*_place(run), *words) for run, words in zip(runs, parts, strict=True))
    if max(places.values(), default=1) > 1:
        names = [name for name in ORDINARY if _varies(runs, name)]
        for run, words in zip(runs, parts, strict=True):
            words += [f"{name.replace('_', ' ')} {_text(_setting(run, name))}" for name in names]
    return [", ".join(words) for words in parts]


def _place(run: RunView) -> tuple[Any, ...]:
    return run.data, run.k, run.n, run.source, run.seed


def _varies(runs: Sequence[RunView], name: str) -> bool:
    """Whether runs of one size differ in a setting: some of them go by the number of images."""
    return any(len({_setting(run, name) for run in runs if run.n == n}) > 1 for n in {run.n for run in runs})


def _setting(run: RunView, name: str) -> Any:
    return run.info.get("settings", {}).get(name)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
