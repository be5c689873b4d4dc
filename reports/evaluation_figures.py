"""The figures of an evaluation against retraining, each a view of one of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.tables import Table
from .style import FAINT, INK, MARKERS, PALETTE, figure, legend_columns, styled

OWN, OTHER = PALETTE[0], PALETTE[6]
KINDS = {"damping": "damping", "cutoff": "cutoff, no damping"}


def draw_methods(table: Table, ceiling: float) -> Figure:
    """Linear datamodeling score of every method, best first.

    Args:
        table: method, kind, lds, lds_low, lds_high.
        ceiling: What a perfect prediction of the mean could reach; NaN: unknown.

    Returns:
        A figure.
    """
    rows = [row for row in table.rows() if np.isfinite(row["lds"])]
    rows.sort(key=lambda row: float(row["lds"]))
    with styled():
        fig = figure(7.4, 1.0 + 0.26 * len(rows))
        ax = fig.subplots()
        for place, row in enumerate(rows):
            colour = OWN if row["kind"] == "influence" else OTHER
            ax.plot([row["lds_low"], row["lds_high"]], [place, place], color=colour, alpha=0.55)
            ax.plot(row["lds"], place, color=colour, marker="o" if row["kind"] == "influence" else "s", markersize=5)
        ax.set_yticks(range(len(rows)), [str(row["method"]) for row in rows])
        ax.axvline(0, color=FAINT, linewidth=0.8)
        if np.isfinite(ceiling):
            ax.axvline(ceiling, color=INK, linestyle=(0, (4, 2)), linewidth=1.0, label="ceiling")
            ax.legend(loc="lower right")
        ax.set_xlabel("linear datamodeling score (mean rank correlation)")
        ax.grid(axis="x")
    return fig


def draw_curve(curve: Table, ceiling: float, given: float, recommended: float) -> Figure:
    """LDS against the damping, and against the cutoff of an undamped pseudo-inverse.

    Args:
        curve: kind ("damping", "cutoff", or "given" for the scores as they are), relative (to the largest eigenvalue), lds,
            low, high.
        ceiling: What a perfect prediction could reach; NaN: unknown.
        given: The damping of the scores over the largest eigenvalue; 0: they have none.
        recommended: The recommended damping over the largest eigenvalue.

    Returns:
        A figure of one line a kind, with 95% bands.
    """
    with styled():
        fig = figure(7.4, 3.9)
        ax = fig.subplots()
        for i, (kind, label) in enumerate(KINDS.items()):
            chosen = curve["kind"] == kind
            if not chosen.any():
                continue
            order = np.argsort(curve["relative"][chosen])
            x, y, low, high = (curve[name][chosen][order] for name in ("relative", "lds", "low", "high"))
            drawn = x > 0
            ax.fill_between(x[drawn], low[drawn], high[drawn], color=PALETTE[i], alpha=0.15, linewidth=0)
            ax.plot(x[drawn], y[drawn], color=PALETTE[i], marker=MARKERS[i], markersize=3.6, label=label)
        marks = [(given, "as scored", (0, (1, 1.2))), (recommended, "recommended", (0, (4, 2)))]
        for value, label, dash in marks:
            if np.isfinite(value) and value > 0:
                ax.axvline(value, color=INK, linestyle=dash, linewidth=1.0, label=label)
        if np.isfinite(ceiling):
            ax.axhline(ceiling, color=FAINT, linewidth=1.0, label="ceiling")
        ax.set_xscale("log")
        ax.set_xlabel("damping or cutoff / largest eigenvalue of the mean curvature")
        ax.set_ylabel("linear datamodeling score")
        ax.grid(axis="y")
        names = ax.get_legend_handles_labels()
        fig.legend(*names, loc="outside upper center", ncols=legend_columns(names[1], 7.4))
    return fig


def draw_leave_one_out(predicted: NDArray[Any], actual: NDArray[Any], words: str) -> Figure:
    """Measured against predicted changes of loss, a point a query and train example.

    Args:
        predicted: Scores, nats per unit weight.
        actual: n times the rise of the loss without the example, nats.
        words: Correlations, for the corner.

    Returns:
        A figure; a few in a hundred points at either end lie outside.
    """
    ends = np.quantile(np.abs(np.concatenate([predicted.ravel(), actual.ravel()])), 0.995) or 1.0
    with styled():
        fig = figure(5.0, 4.6)
        ax = fig.subplots()
        ax.hexbin(
            predicted.ravel(), actual.ravel(), gridsize=70, bins="log", cmap="Blues", extent=(-ends, ends, -ends, ends),
            mincnt=1,
        )  # fmt: skip
        ax.plot([-ends, ends], [-ends, ends], color=FAINT, linewidth=0.9)
        ax.set_xlim(-ends, ends)
        ax.set_ylim(-ends, ends)
        ax.text(0.03, 0.97, words, transform=ax.transAxes, va="top", fontsize=8)
        ax.set_xlabel("score, nats per unit weight")
        ax.set_ylabel("n × measured rise of the loss, nats")
    return fig


def draw_removal(table: Table) -> Figure:
    """How the loss of a query rises when sets of train examples are taken away, by size and by how the set was chosen.

    Args:
        table: A row a query and set: chosen, size, actual, summed, interaction (nats).

    Returns:
        A figure: measured rises, means over queries with standard errors, and dashed what was predicted for the same sets.
    """
    names = list(dict.fromkeys(table["chosen"].tolist()))
    with styled():
        fig = figure(7.4, 3.9)
        ax = fig.subplots()
        for i, name in enumerate(names):
            of = table["chosen"] == name
            sizes = np.unique(table["size"][of])
            groups = [table["actual"][of & (table["size"] == size)] for size in sizes]
            mean, error = np.array([group.mean() for group in groups]), np.array([_error(group) for group in groups])
            ax.fill_between(sizes, mean - error, mean + error, color=PALETTE[i], alpha=0.15, linewidth=0)
            ax.plot(sizes, mean, color=PALETTE[i], marker=MARKERS[i], markersize=4, label=name)
            _predicted(ax, table, of, sizes, PALETTE[i])
        ax.axhline(0, color=FAINT, linewidth=0.8)
        ax.set_xlabel("train examples taken away")
        ax.set_ylabel("rise of the query's loss, nats")
        ax.grid(axis="y")
        handles = ax.get_legend_handles_labels()
        fig.legend(*handles, loc="outside upper center", ncols=legend_columns(handles[1], 7.4))
    return fig


def _predicted(ax: Axes, table: Table, of: NDArray[np.bool_], sizes: Sequence[int] | NDArray[Any], colour: str) -> None:
    column = "interaction" if np.isfinite(table["interaction"][of]).any() else "summed"
    values = [table[column][of & (table["size"] == size)].mean() for size in sizes]
    ax.plot(sizes, values, color=colour, linestyle=(0, (4, 2)), linewidth=1.0)


def _error(group: NDArray[Any]) -> float:
    return float(group.std(ddof=1) / len(group) ** 0.5) if len(group) > 1 else 0.0
