"""Panels of one figure: where each goes, how far its axes reach, which tick labels and legend columns there is room for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .style import legend_columns

PANELS_A_ROW = 4
WIDTHS = {1: 4.8, 2: 3.5, 3: 2.75, 4: 2.2}
"""Width of a panel in inches, by the number beside each other."""
WORDS = 0.074
"""Width of a letter of a label or heading, in inches."""
FRAME = 0.65
"""What of that width is not inside the axes."""
LETTER = 0.068
"""Width of a letter of a tick label, in inches."""
LEAST_SPAN = 0.02
"""Range of shares below which an axis is not stretched by its bars alone."""
LOG_FROM = 8.0
"""Times from the least to the greatest value from which on an axis that is not of shares is logarithmic."""

Key = tuple[str, str]
"""Words for a row and a column of panels; together the title of the panel."""


def title(key: Key) -> str:
    """Heading of a panel.

    Args:
        key: Its words.

    Returns:
        Those that say something.
    """
    return ", ".join(word for word in key if word)


def places(keys: Sequence[Key]) -> tuple[dict[Key, tuple[int, int]], tuple[int, int]]:
    """Where panels go.

    Args:
        keys: Of all panels.

    Returns:
        Row and column of each, and the numbers of rows and columns: by their words where that makes a block, else one after
        the other.
    """
    rows, columns = (list(dict.fromkeys(key[side] for key in keys)) for side in (0, 1))
    if len(rows) > 1 and 1 < len(columns) <= PANELS_A_ROW:
        return {key: (rows.index(key[0]), columns.index(key[1])) for key in keys}, (len(rows), len(columns))
    high = -(-len(keys) // PANELS_A_ROW)
    wide = -(-len(keys) // high)
    return {key: (i // wide, i % wide) for i, key in enumerate(keys)}, (high, wide)


def panels(fig: Figure, labels: Mapping[Key, tuple[str, str]], width: float) -> dict[Key, Axes]:
    """Axes for every panel, with words where the next axis below or to the left does not have the same ones.

    Args:
        fig: Where they go.
        labels: By key: quantity and unit of the horizontal and of the vertical axis.
        width: Of a panel, in inches; longer words are broken.

    Returns:
        By key.
    """
    spots, shape = places(list(labels))
    grid = fig.subplots(*shape, squeeze=False)
    for ax in grid.ravel():
        ax.set_visible(False)
    at = {spot: labels[key] for key, spot in spots.items()}
    for key, (row, column) in spots.items():
        ax = grid[row, column]
        ax.set_visible(True)
        ax.set_title(fill(title(key), int((width - 0.2) / WORDS)))
        x, y = labels[key]
        ax.set_xlabel("" if at.get((row + 1, column), ("", ""))[0] == x else fill(x, int((width - 0.3) / WORDS)))
        ax.set_ylabel("" if at.get((row, column - 1), ("", ""))[1] == y else y)
    return {key: grid[spot] for key, spot in spots.items()}


def size(keys: Sequence[Key], legend: Sequence[str]) -> tuple[float, float, float]:
    """Room for panels of one size and a legend above them, in inches.

    Args:
        keys: Of all panels.
        legend: Its words.

    Returns:
        Width of a panel, and width and height of the figure.
    """
    _, (high, wide) = places(keys)
    each = WIDTHS[wide]
    rows = -(-len(legend) // legend_columns(legend, each * wide))
    return each, each * wide + 0.5, (3.0 if wide == 1 else 2.45) * high + 0.3 + 0.19 * rows


def add_legend(fig: Figure, handles: Sequence[Artist]) -> None:
    """A legend above the panels.

    Args:
        fig: The figure.
        handles: Entries with labels.
    """
    if handles:
        columns = legend_columns([str(handle.get_label()) for handle in handles], fig.get_size_inches()[0] - 0.5)
        fig.legend(handles=handles, loc="outside upper center", ncols=columns)


def horizontal(ax: Axes, values: Iterable[float], scale: str, ticks: Sequence[tuple[float, str]], width: float) -> None:
    """Ends, scale and ticks of a horizontal axis.

    Args:
        ax: The panel.
        values: What is drawn.
        scale: linear, log2, log10, or zero: logarithmic with a place for 0.
        ticks: Where a number stands and how it is written; those without room are left out. none: whole numbers.
        width: Of the panel, in inches.
    """
    found = sorted(set(values))
    if scale in {"log2", "log10"}:
        ax.set_xscale("log", base=int(scale[3:]))
    elif scale == "zero":
        ax.set_xscale("symlog", linthresh=min(value for value in found if value > 0), linscale=0.5)

    def even(value: float) -> float:
        return float(ax.xaxis.get_transform().transform(np.array([value]))[0])

    low, high = even(found[0]), even(found[-1])
    pad = 0.07 * (high - low) or 0.5
    back = ax.xaxis.get_transform().inverted().transform(np.array([low - pad, high + pad]))
    ax.set_xlim(float(back[0]), float(back[1]))
    ax.minorticks_off()
    if ticks:
        inch = (width - FRAME) / (high - low + 2 * pad)
        kept = roomy([(even(value) * inch, word) for value, word in ticks])
        ax.set_xticks([ticks[i][0] for i in kept], [ticks[i][1] for i in kept])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def roomy(spots: Sequence[tuple[float, str]]) -> list[int]:
    """Which tick labels can stand beside each other.

    Args:
        spots: Place in inches and words of each, from left to right.

    Returns:
        Positions of those to be written: the last one, the first where it has room, and of the rest as many as fit.
    """

    def apart(i: int, j: int) -> bool:
        words = len(spots[i][1]) + len(spots[j][1])
        return abs(spots[i][0] - spots[j][0]) >= LETTER * words / 2 + 0.07

    kept = [len(spots) - 1]
    for i in range(len(spots) - 1):
        if all(apart(i, j) for j in kept):
            kept.append(i)
    return sorted(kept)


def in_percent(sign: str = "%") -> FuncFormatter:
    """Ticks of shares as percent, with as many digits as they need.

    Args:
        sign: What stands behind the number.

    Returns:
        The formatter of an axis.
    """
    return FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}{sign}".replace("-", "−"))


def vertical(ax: Axes, rows: Sequence[Mapping[str, Any]], heights: Iterable[float], *, share: bool) -> None:
    """Ends and ticks of a vertical axis: all means, and of the bars what does not press the means together.

    Args:
        ax: The panel.
        rows: What is drawn here and in the panels with the same axis.
        heights: What else is to be seen.
        share: The numbers are shares, or differences of shares, and shown in percent.
    """
    differs = any(row["minus"] for row in rows)
    means = np.array([*(row["mean"] for row in rows), *heights, *([0.0] if differs else [])])
    low, high = means.min(), means.max()
    span = max(high - low, LEAST_SPAN if share else 0.1 * abs(high))
    bars = [row[name] for row in rows for name in ("low", "high") if np.isfinite(row[name])]
    low, high = max(min([low, *bars]), low - span), min(max([high, *bars]), high + span)
    if not share and not differs and means.min() > 0 and means.max() > LOG_FROM * means.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylim(means.min() / 1.5, means.max() * 1.5)
        return
    pad = 0.06 * (high - low) or LEAST_SPAN
    low, high = low - pad, high + pad
    if share:
        least = -1.0 if differs else 0.0
        ax.yaxis.set_major_formatter(in_percent("" if differs else "%"))
        low, high = max(low, least - 0.02), min(high, 1.02)
    ax.set_ylim(low, high)
