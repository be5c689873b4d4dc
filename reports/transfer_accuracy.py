"""The sources' own accuracy and size against their transfer (Salman et al.), and how far the two go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ..influence.tables import Table
from .intervals import LEVEL
from .panels import Key
from .runs import table_of
from .style import strokes
from .transfer_cells import MEASURES, Cell, Row, cell_of, pick
from .transfer_marks import Mark, Quantity, draw_marks
from .transfer_recipes import interval
from .transfer_sources import NORMS, radius_words, real
from .transfer_tables import Sweep

LEAST = 3
"""Points from which on a correlation is given."""
LEAST_INTERVAL = 4
"""Points from which on it has an interval: Fisher's needs n - 3 above 0."""
ALL = "all"
QUANTITIES = {
    "natural_accuracy": Quantity(label="accuracy of the source\non its own data"),
    "parameters": Quantity(label="parameters of the source,\nlogarithmic", share=False),
}
EMPTY = (
    "data", "resolution", "recipe", "k", "n", "quantity", "sources", "points", "pearson", "low", "high", "spearman",
)  # fmt: skip
MOST = 3
"""Values of k, and recipes, that are drawn; tables hold all."""
NAMED = 14
"""Sources up to which each mark carries its name."""


class SourceAccuracy:
    """What the sources are, against what they transfer.

    Args:
        sweep: The runs, and what is known of their sources.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.rows: list[Row] = []
        for row in sweep.means(["accuracy"]):
            known = {name: real(sweep.fact(row["source"], name)) for name in (*QUANTITIES, "eps")}
            self.rows.append({**row, **known, "norm": str(sweep.fact(row["source"], "norm"))})
        self.quantities = [name for name in QUANTITIES if self._values(name) >= LEAST]

    def _values(self, name: str) -> int:
        return (
            len({(row["source"], row[name]) for row in self.rows if np.isfinite(row[name])})
            if self._varies(name)
            else 0
        )

    def _varies(self, name: str) -> bool:
        return len({row[name] for row in self.rows if np.isfinite(row[name])}) > 1

    def __bool__(self) -> bool:
        return bool(self.quantities)

    def frame(self) -> Table:
        """What is drawn.

        Returns:
            A row for each cell, with what its source is.
        """
        return table_of(self.rows, "Sources and their transfer")

    def correlations(self) -> Table:
        """How far transfer goes with the sources' accuracy and size, over all sources and over those of one radius.

        Returns:
            A row for each setting, quantity and set of sources: Pearson's with its 95% interval, and Spearman's.
        """
        found = []
        for quantity in self.quantities:
            for rows in self._settings(quantity).values():
                sets = {ALL: rows}
                for row in rows:
                    sets.setdefault(radius(row), []).append(row)
                fields = {name: rows[0][name] for name in EMPTY[:5]}
                found += [
                    {**fields, "quantity": quantity, "sources": words, **correlate(members, quantity)}
                    for words, members in sets.items()
                    if words == ALL or LEAST <= len(members) < len(rows)
                ]
        return table_of(found, "Source against transfer: correlations over sources", EMPTY)

    def _settings(self, quantity: str) -> dict[Cell, list[Row]]:
        """Rows of everything that a cell can be but for its source."""
        settings: dict[Cell, list[Row]] = {}
        for row in self.rows:
            if np.isfinite(row[quantity]):
                settings.setdefault(cell_of(row)._replace(source=""), []).append(row)
        return {cell: rows for cell, rows in settings.items() if len(rows) >= LEAST}

    def plot(self) -> Figure:
        """Transfer against what the sources are.

        Returns:
            A mark for each source, named; sources of one radius are joined. Panels: quantity, target, recipe and k, at the
            greatest n.
        """
        groups = {row["source"]: radius(row) for row in self.rows}
        grouped = len({*groups.values()}) < len(groups)
        named = len(groups) <= NAMED
        marks = {
            key: [
                Mark(
                    panel=key,
                    line=(groups[row["source"]] if grouped else row["source"], ""),
                    x=(row[quantity], np.nan, np.nan),
                    y=interval(row),
                    text=row["source"] if named else "",
                )
                for row in sorted(rows, key=lambda row: float(row[quantity]))
            ]
            for key, quantity, rows in self._panels()
        }
        axes = {key: QUANTITIES[quantity] for key, quantity, _ in self._panels()}
        lines = dict.fromkeys((groups[source] if grouped else source, "") for source in groups)
        joined = [[mark for mark in here if mark.line == line] for here in marks.values() for line in lines]
        labels = {line: line[0] for line in lines} if grouped or not named else {}
        flat = [mark for here in marks.values() for mark in here]
        label = MEASURES["accuracy"].label
        return draw_marks(flat, axes, label, labels, strokes(list(lines)), [line for line in joined if len(line) > 1])

    def _panels(self) -> list[tuple[Key, str, list[Row]]]:
        """Panels with what is on their horizontal axis."""
        sweep, found = self.sweep, []
        blocks, recipes = pick(sweep.values("k"), MOST), pick(sweep.values("recipe"), MOST)
        most = {cell.data: cell.n for cell in sorted(sweep.cells, key=lambda c: c.n)}
        for quantity in self.quantities:
            for cell, rows in self._settings(quantity).items():
                if cell.n == most[cell.data] and cell.k in blocks and cell.recipe in recipes:
                    words = [
                        quantity.split("_")[-1] if len(self.quantities) > 1 else "",
                        sweep.words(cell, ["data", "resolution"]),
                    ]
                    key = (", ".join(word for word in words if word), sweep.words(cell, ["recipe", "k"]))
                    found.append((key, quantity, rows))
        return found


def correlate(rows: Sequence[Row], quantity: str) -> dict[str, Any]:
    """Correlations of a quantity with the mean transfer accuracy.

    Args:
        rows: One a source.
        quantity: Column of the quantity; parameters are taken by their logarithm.

    Returns:
        Number of points, Pearson's correlation with its 95% interval (Fisher's, from `LEAST_INTERVAL` points on), Spearman's;
        NaN where one side does not vary.
    """
    x = np.array([row[quantity] for row in rows], dtype=np.float64)
    x = x if QUANTITIES[quantity].share else np.log(x)
    y = np.array([row["mean"] for row in rows], dtype=np.float64)
    none = dict.fromkeys(("pearson", "low", "high", "spearman"), np.nan)
    if len(x) < LEAST or not np.ptp(x) or not np.ptp(y):
        return {"points": len(x), **none}
    pearson = stats.pearsonr(x, y)
    limits = tuple(pearson.confidence_interval(LEVEL)) if len(x) >= LEAST_INTERVAL else (np.nan, np.nan)
    found = {"pearson": float(pearson.statistic), "low": float(limits[0]), "high": float(limits[1])}
    return {"points": len(x), **found, "spearman": float(stats.spearmanr(x, y).statistic)}


def radius(row: Row) -> str:
    """What a source was trained against.

    Args:
        row: norm and eps.

    Returns:
        Words.
    """
    if not np.isfinite(row["eps"]):
        return "radius unknown"
    return f"{NORMS.get(row['norm'], row['norm'])} {radius_words(row['eps'])}" if row["norm"] else "natural"
