"""Accuracies against the number of hidden layers of the head: which recipes are one line with heads of several depths."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from .labels import number
from .transfer_cells import MEASURED, Cell, Row, cell_of
from .transfer_curves import Axis, Line
from .transfer_lines import arm_curves
from .transfer_tables import Sweep
from .transfer_views import View


def by_hidden(sweep: Sweep) -> View:
    """Accuracies against the hidden layers of the head (Shafahi et al., Figure 4).

    Args:
        sweep: The runs.

    Returns:
        Lines: source, and what else the recipe does; panels: measure, k and n.
    """
    depth = {cell: int(next(iter(runs.values()))["hidden"]) for cell, runs in sweep.cells.items()}
    lines = head_lines(sweep, depth)
    order = sorted(dict.fromkeys(lines.values()), key=lambda line: sweep.sources.index(line[0]))
    labels = {line: _words(sweep, line, lines) for line in order}
    curves = arm_curves(
        sweep,
        [{**row, "hidden": depth[cell_of(row)]} for row in sweep.means(MEASURED)],
        "Accuracies by hidden layers of the head",
        Axis(label="hidden layers of the head", of=_hidden, ticks=[(h, str(h)) for h in sorted({*depth.values()})]),
        ["k", "n"],
        line=lambda row: lines[cell_of(row)],
        labels=labels,
    )
    caption = "Accuracy against the number of hidden layers of the head; 0 is a linear head."
    return View(name="by-hidden-layers", heading="Depth of the head", curves=curves, caption=caption)


def head_lines(sweep: Sweep, depth: Mapping[Cell, int]) -> dict[Cell, Line]:
    """What each cell is, but for the depth of its head.

    Args:
        sweep: The runs.
        depth: Hidden layers of each cell.

    Returns:
        Source and rest of the recipe: by its settings where these tell all recipes apart, else its name without the number.
    """
    lines = {cell: (cell.source, _settings(next(iter(runs.values())))) for cell, runs in sweep.cells.items()}
    places = {(cell._replace(recipe=lines[cell][1]), depth[cell]) for cell in lines}
    if len(places) == len(lines):
        return lines
    return {cell: (cell.source, without_depth(cell.recipe, depth[cell])) for cell in sweep.cells}


def without_depth(recipe: str, hidden: int) -> str:
    """A recipe's name without the number of its hidden layers.

    Args:
        recipe: Such as "2 hidden layers, dropout 0.2", or "MLP 2".
        hidden: The number.

    Returns:
        What is left: "dropout 0.2", "MLP".
    """
    left = re.sub(rf"(?<![\w.]){hidden}(?![\w.])(\s+hidden\s+layers?)?", "", recipe, count=1)
    return ", ".join(part for piece in left.split(",") if (part := " ".join(piece.split())))


def _settings(row: Row) -> str:
    parts = [
        f"{word} {number(row[name])}"
        for name, word in (("lwf", "LwF"), ("neft", "NEFT"))
        if _set(row.get(name, np.nan))
    ]
    return ", ".join([*parts, *["adversarial"] * bool(row.get("adversarial", False))])


def _set(value: float) -> bool:
    return bool(np.isfinite(value)) and value != 0


def _words(sweep: Sweep, line: Line, lines: Mapping[Cell, Line]) -> str:
    rests = {rest for _, rest in lines.values()}
    parts = [line[0]] * ("source" in sweep.varying) + [line[1] or "plain"] * (len(rests) > 1)
    return ", ".join(parts) or line[0]


def _hidden(row: Row) -> float:
    return float(row["hidden"])
