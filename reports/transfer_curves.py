"""Lines in panels: the figure that most views of a sweep are drawn as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from ..influence.tables import Table
from .panels import Key, add_legend, horizontal, panels, size, vertical
from .runs import table_of
from .style import FAINT, INK, Stroke, figure, styled
from .transfer_cells import EMPTY, MEASURES, Row

MARKED = 15
"""Lines of more points go without markers, and have bands in place of bars."""
DASHED = (0, (5, 2))
RING: dict[str, Any] = {
    "color": INK, "linestyle": "", "marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.1,
}  # fmt: skip

Line = tuple[str, str]
"""Name of a line in two parts, such as source and recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The horizontal axis of every panel."""

    label: str
    """Quantity and unit."""
    of: Callable[[Row], float]
    """Where a row stands."""
    scale: str = "linear"
    """linear, log2, log10, or zero: logarithmic with a place for 0."""
    ticks: Sequence[tuple[float, str]] = ()
    """Where a number stands and how it is written; none: whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A dashed level across a panel."""

    panel: Key
    line: Line
    """The line whose colour it has."""
    height: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """Means with intervals along an axis: lines in panels, all of them rows of one table."""

    title: str
    """What the rows are."""
    rows: Sequence[Row]
    axis: Axis
    panel: Callable[[Row], Key]
    """Which panel a row is drawn in."""
    line: Callable[[Row], Line]
    """Which line a row belongs to."""
    labels: Mapping[Line, str]
    """Words of every line, in the order of the legend."""
    strokes: Mapping[Line, Stroke]
    share: Callable[[Row], Any]
    """Panels whose rows give the same have one vertical axis."""
    drawn: Callable[[Row], bool] = lambda row: True
    """Whether a row of the table is drawn too."""
    levels: Sequence[Level] = ()
    level_label: str = ""
    ringed: Sequence[Row] = ()
    """Rows whose point has a ring around it."""
    ring_label: str = ""

    def __bool__(self) -> bool:
        return bool(self.rows)

    def frame(self) -> Table:
        """What the figure is a view of.

        Returns:
            A row a point.
        """
        return table_of(self.rows, self.title, EMPTY)

    def plot(self) -> Figure:
        """Draw the table.

        Returns:
            A figure.
        """
        cells: dict[Key, list[Row]] = {}
        for row in self.rows:
            if self.drawn(row):
                cells.setdefault(self.panel(row), []).append(row)
        shown = {self.line(row) for rows in cells.values() for row in rows}
        with styled():
            handles = self._handles([line for line in self.labels if line in shown])
            width, *whole = size(list(cells), [str(handle.get_label()) for handle in handles])
            fig = figure(*whole)
            labels = {key: (self.axis.label, _quantity(rows[0])) for key, rows in cells.items()}
            for key, ax in panels(fig, labels, width).items():
                self._panel(fig, ax, key, cells, width)
            add_legend(fig, handles)
        return fig

    def _panel(self, fig: Figure, ax: Axes, key: Key, cells: Mapping[Key, Sequence[Row]], width: float) -> None:
        rows = cells[key]
        everywhere = [self.axis.of(row) for others in cells.values() for row in others]
        horizontal(ax, everywhere, self.axis.scale, self.axis.ticks, width)
        step = min(1.5, 8 / len(self.labels))
        for i, line in enumerate(self.labels):
            points = sorted((row for row in rows if self.line(row) == line), key=self.axis.of)
            if points:
                moved = ScaledTranslation(step * (i - (len(self.labels) - 1) / 2) / 72, 0, fig.dpi_scale_trans)
                _draw(ax, points, self.axis, self.strokes[line], moved)
        for level in self.levels:
            if level.panel == key:
                ax.axhline(level.height, color=self.strokes[level.line].colour, linestyle=DASHED, linewidth=1.0)
        for row in self.ringed:
            if self.drawn(row) and self.panel(row) == key:
                ax.plot(self.axis.of(row), row["mean"], **RING)
        if rows[0]["minus"]:
            ax.axhline(0, color=FAINT, linewidth=0.9)
        alike = {k for k, others in cells.items() if self.share(others[0]) == self.share(rows[0])}
        heights = [level.height for level in self.levels if level.panel in alike]
        vertical(ax, [row for k in alike for row in cells[k]], heights, share=MEASURES[rows[0]["measure"]].share)
        ax.grid(axis="y")

    def _handles(self, lines: Sequence[Line]) -> list[Line2D]:
        handles = [handle(self.strokes[line], self.labels[line]) for line in lines]
        if self.levels:
            handles.append(Line2D([], [], color=FAINT, linestyle=DASHED, linewidth=1.0, label=self.level_label))
        if self.ringed:
            handles.append(Line2D([], [], label=self.ring_label, **RING))
        return handles


def _draw(ax: Axes, points: Sequence[Row], axis: Axis, stroke: Stroke, moved: ScaledTranslation) -> None:
    """One line; a hair beside its neighbours, so that bars at one place can be told apart."""
    x = np.array([axis.of(row) for row in points])
    mean, low, high = (np.array([row[name] for row in points], dtype=np.float64) for name in ("mean", "low", "high"))
    look: dict[str, Any] = {"color": stroke.colour, "linestyle": stroke.dash}
    if len(x) > MARKED:
        ax.fill_between(x, low, high, color=stroke.colour, alpha=0.15, linewidth=0)
        ax.plot(x, mean, linewidth=1.3, **look)
        return
    place = ax.transData + moved
    ax.vlines(x, low, high, color=stroke.colour, linewidth=1.1, alpha=0.55, transform=place)
    ax.plot(x, mean, linewidth=1.4, marker=stroke.marker, markersize=4.2, transform=place, **look)


def _quantity(row: Row) -> str:
    measure = MEASURES[row["measure"]]
    return f"difference in {measure.name},\npercentage points" if row["minus"] else measure.label


def handle(stroke: Stroke, label: str, *, line: bool = True) -> Line2D:
    """A line's entry in the legend.

    Args:
        stroke: Its look.
        label: Its words.
        line: With the line, and not its marker alone.

    Returns:
        The entry.
    """
    dash: Any = stroke.dash if line else ""
    return Line2D([], [], color=stroke.colour, linestyle=dash, marker=stroke.marker, markersize=4.2, label=label)
