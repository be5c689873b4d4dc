"""The class-match figures: rates against rank, and the summary measures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .intervals import Estimate
from .style import FAINT, figure, legend_columns, source_colours, source_markers, spread, styled

PANELS_A_ROW = 4
BySource = Mapping[str, Estimate | None]


def draw_curves(
    curves: Mapping[str, BySource],
    labels: Mapping[str, str],
    sources: Sequence[str],
    order: Sequence[str],
    chance: float,
    what: str,
) -> Figure:
    """Rates against rank, a panel for each method.

    Args:
        curves: Method, then source, to the estimates of all ranks.
        labels: Method to words.
        sources: The arms of the group.
        order: All arms of the report, in the order that decides their colours.
        chance: Level of a random order.
        what: The quantity, for the axis label.

    Returns:
        The figure; panels share their axes.
    """
    rows = -(-len(curves) // PANELS_A_ROW)
    columns = -(-len(curves) // rows)
    with styled():
        fig = figure(2.15 * columns + 0.5, 2.15 * rows + 0.45)
        grid = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax, method in zip(grid.ravel(), curves, strict=False):
            _curves(ax, curves[method], order, chance)
            ax.set_title(labels[method], fontsize=8.5)
        for ax in grid.ravel()[len(curves) :]:
            ax.set_axis_off()
        for column in range(columns):
            lowest = max(r for r in range(rows) if r * columns + column < len(curves))
            grid[lowest, column].set_xlabel("rank of the neighbour")
            grid[lowest, column].tick_params(labelbottom=True)
        for ax in grid[:, 0]:
            ax.set_ylabel(what)
        _legend(fig, _handles(sources, order, line=True))
    return fig


def _curves(ax: Axes, of_source: BySource, order: Sequence[str], chance: float) -> None:
    colours = source_colours(order)
    for source, estimate in of_source.items():
        if estimate is None:
            continue
        ranks = np.arange(1, len(estimate.mean) + 1)
        ax.fill_between(
            ranks, estimate.low.clip(0, 1), estimate.high.clip(0, 1), color=colours[source], alpha=0.18, linewidth=0
        )
        ax.plot(ranks, estimate.mean, color=colours[source], linewidth=1.4, marker="o" if len(ranks) == 1 else "")
    ax.axhline(chance, color=FAINT, linestyle=":", linewidth=1.2)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    ax.grid(axis="y")


def draw_summary(
    shown: Mapping[str, Mapping[str, BySource]],
    labels: Mapping[str, str],
    sources: Sequence[str],
    order: Sequence[str],
    chance: Mapping[str, float],
) -> Figure:
    """Measures side by side, a line for each method, a point with its interval for each source.

    Args:
        shown: Measure, then method, then source, to one point.
        labels: Method to words.
        sources: The arms of the group.
        order: All arms of the report, in the order that decides their colours.
        chance: Measure to its level for a random order.

    Returns:
        The figure.
    """
    colours, markers = source_colours(order), source_markers(order)
    with styled():
        fig = figure(2.6 * len(shown) + 1.8, 0.9 + max(0.46, 0.13 * len(sources)) * len(labels))
        axes = fig.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
        for ax, (measure, of_method) in zip(axes, shown.items(), strict=True):
            for i, of_source in enumerate(of_method.values()):
                for source, offset in zip(sources, spread(len(sources)), strict=True):
                    if (found := of_source.get(source)) is not None:
                        _point(ax, found, i + offset, colours[source], markers[source])
            ax.axvline(chance[measure], color=FAINT, linestyle=":", linewidth=1.2)
            ax.set_xlabel(f"{measure}, share of {'neighbours' if measure.startswith('first') else 'queries'}")
            ax.grid(axis="x")
            ax.tick_params(axis="y", length=0)
        axes[0].set_xlim(-0.02, 1.02)
        axes[0].set_yticks(range(len(labels)), list(labels.values()))
        axes[0].set_ylim(len(labels) - 0.5, -0.5)
        _legend(fig, _handles(sources, order, line=False))
    return fig


def _point(ax: Axes, found: Estimate, place: float, colour: str, marker: str) -> None:
    span = np.clip([found.low[0], found.high[0]], 0, 1)
    ax.plot(span, [place, place], color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
    ax.plot(found.mean[0], place, marker, color=colour, markersize=5)


def _handles(sources: Sequence[str], order: Sequence[str], *, line: bool) -> list[Line2D]:
    colours, markers = source_colours(order), source_markers(order)
    named = [
        Line2D([], [], color=colours[s], label=s, linestyle="-" if line else "", marker="" if line else markers[s])
        for s in sources
    ]
    return [*named, Line2D([], [], color=FAINT, linestyle=":", linewidth=1.2, label="chance")]


def _legend(fig: Figure, handles: Sequence[Line2D]) -> None:
    columns = legend_columns([str(handle.get_label()) for handle in handles], fig.get_figwidth())
    fig.legend(handles=handles, loc="outside upper center", ncols=columns)
