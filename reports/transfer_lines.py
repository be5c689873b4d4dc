"""Curves with a line for each arm: which panels are worth drawing, and which rows of a large sweep are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .panels import Key
from .style import strokes
from .transfer_cells import Row, cell_of, pick
from .transfer_curves import Axis, Curves, Line
from .transfer_tables import Sweep

MOST = 3
"""Sizes of the train set that are drawn where the axis is another thing, and values of k over epochs; tables hold all."""
MOST_PANELS = 16
"""Panels from which on one size is drawn."""
MOST_SOURCES = 12
"""Sources that are drawn as lines of one figure; tables hold all."""


def arm_curves(
    sweep: Sweep,
    rows: Sequence[Row],
    title: str,
    axis: Axis,
    inner: Sequence[str],
    *,
    outer: Sequence[str] = ("data", "resolution"),
    drawn: Callable[[Row], bool] | None = None,
    line: Callable[[Row], Line] | None = None,
    labels: dict[Line, str] | None = None,
) -> Curves:
    """Means with a line for each arm, or for each of other lines.

    Args:
        sweep: The runs.
        rows: What may be drawn.
        title: What the rows are.
        axis: The horizontal axis.
        inner: Fields that tell the panels of a row apart.
        outer: Fields that tell rows of panels apart, beside the measure.
        drawn: Which rows are drawn; None: those that `some` says.
        line: Which line a row belongs to; None: its arm.
        labels: Words of the lines; None: of the arms.

    Returns:
        The curves, without panels in which no line has two places.
    """
    several = len({row["measure"] for row in rows}) > 1

    def panel(row: Row) -> Key:
        measure = row["measure"] if several else ""
        words = (sweep.words(cell_of(row), outer), measure)
        return ", ".join(word for word in words if word), sweep.words(cell_of(row), inner)

    if drawn is None:
        drawn = some(sweep, rows, panel, by_size="n" in inner, by_source=labels is None)
    if labels is None:
        shown = drawn_sources(sweep)
        labels = {arm: words for arm, words in sweep.arms().items() if arm[0] in shown}
    return enough(
        Curves(
            title=title,
            rows=rows,
            axis=axis,
            panel=panel,
            line=line or (lambda row: (row["source"], row["recipe"])),
            labels=labels,
            strokes=strokes(list(labels)),
            share=share,
            drawn=drawn,
        )
    )


def enough(curves: Curves) -> Curves:
    """Curves without the panels in which no line has two places.

    Args:
        curves: Any.

    Returns:
        The others, perhaps none.
    """
    found: dict[tuple[Key, Line], set[float]] = {}
    for row in curves.rows:
        found.setdefault((curves.panel(row), curves.line(row)), set()).add(curves.axis.of(row))
    kept = {panel for (panel, _), at in found.items() if len(at) > 1}
    return replace(curves, rows=[row for row in curves.rows if curves.panel(row) in kept])


def size_axis(rows: Iterable[Row], column: str, label: str) -> Axis:
    """The axis of numbers of images.

    Args:
        rows: What is drawn.
        column: Where the number stands.
        label: Quantity and unit.

    Returns:
        A logarithmic axis with the numbers themselves as ticks.
    """
    ticks = [
        (value, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}") for value in sorted({row[column] for row in rows})
    ]
    return Axis(label=label, of=lambda row: row[column], scale="log2", ticks=ticks)


def drawn_sources(sweep: Sweep) -> set[str]:
    """The sources that are lines of a figure.

    Args:
        sweep: The runs.

    Returns:
        All, or `MOST_SOURCES` of them.
    """
    return {*pick(sweep.sources, MOST_SOURCES)}


def some(
    sweep: Sweep, rows: Sequence[Row], panel: Callable[[Row], Key], *, by_size: bool, by_source: bool
) -> Callable[[Row], bool]:
    """Which rows are drawn where a figure of all of them could not be read.

    Args:
        sweep: The runs.
        rows: All rows.
        panel: Their panels.
        by_size: A panel is of one size of the train set.
        by_source: A line is of one source.

    Returns:
        True for `MOST_SOURCES` sources where a line is of one, and for `MOST` sizes of each data set where a panel is of one, or
        for the greatest size alone when these would be more than `MOST_PANELS` panels.
    """
    sources = drawn_sources(sweep) if by_source else {*sweep.sources}

    def sized(most: int) -> set[tuple[str, int]]:
        of_data = {data: [cell for cell in sweep.cells if cell.data == data] for data in sweep.values("data")}
        return {(data, n) for data, cells in of_data.items() for n in pick(sweep.values("n", cells), most)}

    shown = sized(MOST if by_size else len(sweep.cells))
    if by_size and len({panel(row) for row in rows if (row["data"], row["n"]) in shown}) > MOST_PANELS:
        shown = sized(1)
    return lambda row: row["source"] in sources and (row["data"], row["n"]) in shown


def share(row: Row) -> tuple[str, str]:
    """Which panels have one vertical axis.

    Args:
        row: Drawn in the panel.

    Returns:
        Data and measure: such panels can be read off against each other.
    """
    return row["data"], row["measure"]
