"""Recipes beside each other: accuracy, robustness and cost, as in CARTL's tables, and one accuracy against the other."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..influence.tables import Table
from .output import LONG, Grid
from .output import Cell as Words
from .panels import Key
from .runs import table_of
from .style import strokes
from .tabular import estimate
from .transfer_cells import MEASURES, PLAIN, Cell, Row, cell_of, entry_of, k_order
from .transfer_lines import some
from .transfer_marks import Mark, Quantity, draw_marks
from .transfer_tables import Sweep

COLUMNS = ("accuracy", "robust accuracy", "seconds")
PARTS = ("mean", "low", "high")
EMPTY = (
    "data",
    "resolution",
    "n",
    "k",
    "source",
    "recipe",
    "seeds",
    *(f"{m}_{part}" for m in COLUMNS for part in PARTS),
)


class Recipes:
    """Recipes of every source.

    Args:
        sweep: The runs.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.shown = [m for m in COLUMNS if sweep.has(m)]
        several = len(sweep.values("recipe")) > 1
        self.cells = [cell for cell in sweep.cells if sweep.by_seed(cell, "accuracy")] if several else []

    def __bool__(self) -> bool:
        return bool(self.cells)

    @property
    def compared(self) -> bool:
        """Whether one accuracy can be drawn against the other."""
        return sum(bool(self.sweep.by_seed(cell, "robust accuracy")) for cell in self.cells) > 1

    def frame(self) -> Table:
        """Every recipe with its three numbers.

        Returns:
            A row for each cell.
        """
        return table_of([self._row(cell) for cell in self._sorted()], "Recipes: accuracy, robustness and cost", EMPTY)

    def _sorted(self) -> list[Cell]:
        """Recipes of one setting and source below each other."""
        sources, recipes = self.sweep.sources, self.sweep.values("recipe")
        targets = self.sweep.values("target")
        return sorted(
            self.cells,
            key=lambda c: (
                targets.index(c.target),
                c.n,
                sources.index(c.source),
                recipes.index(c.recipe),
                k_order(c.k),
            ),
        )

    def _row(self, cell: Cell) -> Row:
        means = {measure: self.sweep.mean(cell, measure) for measure in COLUMNS}
        row: Row = {
            "data": cell.data,
            "resolution": np.nan if cell.resolution is None else cell.resolution,
            "n": cell.n,
            "k": cell.k,
            "source": cell.source,
            "recipe": cell.recipe or PLAIN,
            "seeds": len(self.sweep.cells[cell]),
        }
        for measure, found in means.items():
            row |= {f"{measure}_{part}": found[part] if found else np.nan for part in PARTS}
        return row

    def grid(self, file: str) -> Grid:
        """The table as a part of the page.

        Args:
            file: CSV with the same numbers.

        Returns:
            The part; fields that do not vary are left out.
        """
        fields = [name for name in ("data", "resolution", "n", "k", "source") if name in self.sweep.varying]
        body: list[list[Words]] = []
        for cell in self._sorted():
            words = [entry_of(name, getattr(cell, name)) for name in fields]
            numbers = [estimate(self.sweep.mean(cell, m), share=MEASURES[m].share) for m in self.shown]
            body.append([cell.recipe or PLAIN, *words, *numbers])
        heads = {"accuracy": "accuracy, %", "robust accuracy": "robust accuracy, %", "seconds": "training, s"}
        return Grid(
            caption="Every recipe: accuracy, accuracy under attack and seconds of training, means over seeds with 95% intervals",
            head=["recipe", *fields, *(heads[m] for m in self.shown)],
            body=body,
            file=file,
            folded=len(body) > LONG,
        )

    def plot(self) -> Figure:
        """Robust accuracy against accuracy.

        Returns:
            A mark for each arm and k, with its k beside it where k varies; panels: target and n.
        """
        arms = self.sweep.arms()

        def panel(row: Row) -> Key:
            cell = cell_of(row)
            return self.sweep.words(cell, ["data", "resolution"]), self.sweep.words(cell, ["n"])

        pairs = [
            (cell, self.sweep.mean(cell, "accuracy"), self.sweep.mean(cell, "robust accuracy")) for cell in self.cells
        ]
        held = [(cell, x, y) for cell, x, y in pairs if x and y]
        drawn = some(self.sweep, [x for _, x, _ in held], panel, by_size=True, by_source=False)
        marks = [
            Mark(
                panel=panel(x),
                line=cell.arm,
                x=interval(x),
                y=interval(y),
                text=cell.k if "k" in self.sweep.varying and not self.sweep.arm_has_k else "",
            )
            for cell, x, y in held
            if drawn(x)
        ]
        present = {mark.line for mark in marks}
        labels = {arm: words for arm, words in arms.items() if arm in present}
        x_axis = {mark.panel: Quantity(label=MEASURES["accuracy"].label.replace("\n", " ")) for mark in marks}
        return draw_marks(marks, x_axis, MEASURES["robust accuracy"].label, labels, strokes(list(arms)))


def interval(row: Row) -> tuple[float, float, float]:
    """A mean with its limits.

    Args:
        row: Row of a table.

    Returns:
        Mean, low, high.
    """
    return row["mean"], row["low"], row["high"]
