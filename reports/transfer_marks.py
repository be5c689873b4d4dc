"""Marks in panels: one quantity of a sweep against another, each mark named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .panels import FRAME, LETTER, Key, add_legend, horizontal, in_percent, panels, size
from .style import FAINT, INK, Stroke, figure, styled
from .transfer_curves import Line, handle

TEXT_HEIGHT = 0.13
"""Of a mark's words, in inches."""
PANEL_HEIGHT = 1.75
"""Of the inside of a panel, in inches, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point with its bars and its words."""

    panel: Key
    line: Line
    """Decides its look."""
    x: tuple[float, float, float]
    """Mean, low and high; NaN limits where there are none."""
    y: tuple[float, float, float]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What an axis shows."""

    label: str
    """With its unit."""
    share: bool = True
    """In percent; otherwise a size, on a logarithmic axis."""


def draw_marks(
    marks: Sequence[Mark],
    x: Mapping[Key, Quantity],
    y: str,
    labels: Mapping[Line, str],
    strokes: Mapping[Line, Stroke],
    joined: Sequence[Sequence[Mark]] = (),
) -> Figure:
    """Marks in panels.

    Args:
        marks: What is drawn.
        x: By panel, its horizontal axis.
        y: Quantity and unit of the vertical axes, in percent.
        labels: Words of each look in the legend; none: no legend.
        strokes: The looks.
        joined: Marks that a faint line goes through.

    Returns:
        A figure; every panel has its own ends.
    """
    keys = list(dict.fromkeys(mark.panel for mark in marks))
    with styled():
        handles = [handle(strokes[line], word, line=False) for line, word in labels.items()]
        width, *whole = size(keys, list(labels.values()))
        fig = figure(*whole)
        for key, ax in panels(fig, {key: (x[key].label, y) for key in keys}, width).items():
            here = [mark for mark in marks if mark.panel == key]
            for line in joined:
                if line[0].panel == key:
                    ax.plot([m.x[0] for m in line], [m.y[0] for m in line], color=FAINT, linewidth=0.8, zorder=1)
            for mark in here:
                _mark(ax, mark, strokes[mark.line])
            _ends(ax, here, x[key], width)
            _name(ax, here, [strokes[mark.line].colour if labels else INK for mark in here], width - FRAME)
            ax.grid()
        add_legend(fig, handles)
    return fig


def _mark(ax: Axes, mark: Mark, stroke: Stroke) -> None:
    ax.plot(mark.x[0], mark.y[0], stroke.marker, color=stroke.colour, markersize=5.5, zorder=3)
    ax.plot([mark.x[0]] * 2, mark.y[1:], color=stroke.colour, linewidth=1.1, alpha=0.45, zorder=2)
    ax.plot(mark.x[1:], [mark.y[0]] * 2, color=stroke.colour, linewidth=1.1, alpha=0.45, zorder=2)


def _ends(ax: Axes, marks: Sequence[Mark], x: Quantity, width: float) -> None:
    """The ends of both axes: all marks, and of the bars what does not press them together."""
    if x.share:
        ax.set_xlim(*_span([mark.x for mark in marks]))
        ax.xaxis.set_major_formatter(in_percent())
        ax.locator_params(axis="x", nbins=5)
    else:
        values = sorted({mark.x[0] for mark in marks})
        horizontal(ax, values, "log10", [(value, _short(value)) for value in values], width)
    ax.set_ylim(*_span([mark.y for mark in marks]))
    ax.yaxis.set_major_formatter(in_percent())


def _short(value: float) -> str:
    size = next((size for size in (("M", 1e6), ("k", 1e3)) if value >= size[1]), ("", 1.0))
    return f"{value / size[1]:.3g}{size[0]}"


def _span(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    means = np.array([point[0] for point in points])
    bars = np.array([end for point in points for end in point if np.isfinite(end)])
    span = max(float(np.ptp(means)), 0.02)
    low, high = max(bars.min(), means.min() - span), min(bars.max(), means.max() + span)
    return float(low - 0.12 * (high - low) - 0.003), float(high + 0.12 * (high - low) + 0.003)


def _name(ax: Axes, marks: Sequence[Mark], colours: Sequence[str], width: float) -> None:
    """The words of each mark, where they cover neither marks nor other words nor the frame."""
    scale = np.array([width, PANEL_HEIGHT])

    def inches(x: float, y: float) -> tuple[float, float]:
        place = ax.transAxes.inverted().transform(ax.transData.transform((x, y))) * scale
        return float(place[0]), float(place[1])

    spots = [inches(mark.x[0], mark.y[0]) for mark in marks]
    taken = [_Box(x - 0.05, y - 0.05, 0.1, 0.1) for x, y in spots]
    taken += [bar for mark in marks for bar in _bars(mark, inches)]
    for mark, colour, (x, y) in zip(marks, colours, spots, strict=True):
        if not mark.text:
            continue
        long = LETTER * len(mark.text)
        boxes = list(_around(x, y, long))
        box = min(boxes, key=lambda b: (b.cost(taken, width), boxes.index(b)))
        taken.append(box)
        at = ((box.x - x) * 72, (box.y - y + TEXT_HEIGHT / 2) * 72)
        ax.annotate(
            mark.text,
            (mark.x[0], mark.y[0]),
            at,
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _bars(mark: Mark, inches: Callable[[float, float], tuple[float, float]]) -> Iterator[_Box]:
    (x, left, right), (y, low, high) = mark.x, mark.y
    for start, end in (((left, y), (right, y)), ((x, low), (x, high))):
        if np.isfinite([*start, *end]).all():
            (x0, y0), (x1, y1) = inches(*start), inches(*end)
            yield _Box(x0 - 0.015, y0 - 0.015, x1 - x0 + 0.03, y1 - y0 + 0.03)


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle in inches: its lower left corner and its size."""

    x: float
    y: float
    wide: float
    high: float

    def cost(self, others: Sequence[_Box], width: float) -> float:
        """How much of it is covered by others or outside the panel, in square inches."""
        covered = sum(
            max(0.0, min(self.x + self.wide, o.x + o.wide) - max(self.x, o.x))
            * max(0.0, min(self.y + self.high, o.y + o.high) - max(self.y, o.y))
            for o in others
        )
        beyond = max(0.0, -self.x) + max(0.0, self.x + self.wide - width)
        above = max(0.0, -self.y) + max(0.0, self.y + self.high - PANEL_HEIGHT)
        return round(covered + beyond * self.high + above * self.wide, 6)


def _around(x: float, y: float, long: float) -> Iterator[_Box]:
    """Places for words, the best first."""
    gap, half = 0.07, TEXT_HEIGHT / 2
    first = _Box(x + gap, y - half, long, TEXT_HEIGHT)
    for dx, dy in ((0, 0), (-long - 2 * gap, 0), (0, 0.1), (0, -0.1), (-long - 2 * gap, 0.1), (-long - 2 * gap, -0.1)):
        yield replace(first, x=first.x + dx, y=first.y + dy)
    for dy in (0.14, -0.14, 0.27, -0.27):
        yield replace(first, x=x - long / 2, y=first.y + dy)
