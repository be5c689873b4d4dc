"""A cell of a sweep: runs that differ in nothing but the seed; and the numbers that every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .intervals import Estimate

EMPTY = (
    "data", "resolution", "recipe", "source", "minus", "k", "n", "measure", "mean", "low", "high", "seeds", "basis",
)  # fmt: skip

PLAIN = "plain"
"""What a recipe without a name is called."""


class Measure(NamedTuple):
    """A number that every run has."""

    name: str
    column: str
    label: str
    """For axes: quantity and unit."""
    share: bool
    """Between 0 and 1."""


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("accuracy", "test_accuracy", "test accuracy,\npercent of images", True),
        Measure("robust accuracy", "robust_accuracy", "robust accuracy,\npercent of images", True),
        Measure("seconds", "seconds", "time of training,\nseconds", False),
        Measure("train accuracy", "train_accuracy", "train accuracy,\npercent of images", True),
    )
}
"""By name; those of the page's main table first."""
MEASURED = ("accuracy", "robust accuracy")


class Cell(NamedTuple):
    """What a run is, but for its seed."""

    data: str
    resolution: float | None
    """Pixels a side that the images were reduced to; None: as they are."""
    recipe: str
    source: str
    k: str
    n: int

    @property
    def arm(self) -> tuple[str, str]:
        """Source and recipe: a line in most figures."""
        return self.source, self.recipe

    @property
    def target(self) -> tuple[str, float | None]:
        """Data set and resolution."""
        return self.data, self.resolution


Row = dict[str, Any]


def cell_of(row: Mapping[str, Any]) -> Cell:
    """The cell of a run.

    Args:
        row: Row of a tidy table.

    Returns:
        Its cell.
    """
    resolution = row["resolution"]
    known = resolution is not None and resolution == resolution
    return Cell(
        str(row["data"]), float(resolution) if known else None, str(row["recipe"]), str(row["source"]), str(row["k"]),
        int(row["n"]),
    )  # fmt: skip


def record(cell: Cell, measure: str, estimate: Estimate, minus: str = "") -> Row:
    """An estimate as a row.

    Args:
        cell: What it is of.
        measure: Key of MEASURES.
        estimate: One point.
        minus: What was taken away; "" for a mean.

    Returns:
        A row with the columns of EMPTY.
    """
    fields = {**cell._asdict(), "resolution": np.nan if cell.resolution is None else cell.resolution}
    return {**fields, "minus": minus, "measure": measure, **estimate.first()}


def word_of(name: str, value: Any) -> str:
    """A field of a cell in words.

    Args:
        name: Field of Cell.
        value: What it takes.

    Returns:
        Words.
    """
    return f"{name} = {entry_of(name, value)}" if name in {"k", "n"} else entry_of(name, value)


def entry_of(name: str, value: Any) -> str:
    """A field of a cell below its name.

    Args:
        name: Field of Cell.
        value: What it takes.

    Returns:
        Words.
    """
    if name == "resolution":
        return "own resolution" if value is None else f"{value:g} px"
    if name == "recipe":
        return value or PLAIN
    return f"{value:,}" if name == "n" else str(value)


def k_order(k: str) -> tuple[float, str]:
    """Where a number of blocks stands among others.

    Args:
        k: Digits, or "all".

    Returns:
        For sorting: numbers by size, words after them.
    """
    return (float(k), "") if k.isdigit() else (np.inf, k)


def pick(values: Sequence[Any], most: int) -> list[Any]:
    """Some of many values, evenly spread, the first and the last among them; of one the last.

    Args:
        values: In order.
        most: How many at most.

    Returns:
        The values, or so many of them.
    """
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[-1]]
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
