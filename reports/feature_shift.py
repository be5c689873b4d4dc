"""How far a random change of an image moves the features of several networks: quantiles and a histogram."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.tables import Table
from .runs import table_of
from .style import FAINT, figure, legend_columns, source_colours, styled

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DISTANCES = {"l2": "Euclidean distance", "mean_abs": "mean absolute difference"}

Shifts = Mapping[str, NDArray[np.float64]]
"""For one network, image by image [n]: "l2" and "mean_abs", and with "_size" the same measure of the features themselves."""


def relative(shifts: Shifts, distance: str) -> NDArray[np.float64]:
    """Distances over the size of the features they set out from.

    Args:
        shifts: Of one network.
        distance: "l2" or "mean_abs".

    Returns:
        Shares [n]; NaN where all features are zero.
    """
    size = shifts[f"{distance}_size"]
    shares = np.full(len(size), np.nan)
    np.divide(shifts[distance], size, out=shares, where=size > 0)
    return shares


def shift_table(shifts: Mapping[str, Shifts], title: str) -> Table:
    """Both distances of every network, as they are and over the size of the features.

    Args:
        shifts: By network.
        title: What was done.

    Returns:
        A row for each network, distance and scale ("absolute" or "relative"): number of images, mean, quantiles, largest.
    """
    rows = []
    for source, held in shifts.items():
        for distance in DISTANCES:
            for scale, values in (("absolute", held[distance]), ("relative", relative(held, distance))):
                known = values[np.isfinite(values)]
                found = np.quantile(known, QUANTILES) if len(known) else np.full(len(QUANTILES), np.nan)
                rows.append({
                    "source": source,
                    "distance": distance,
                    "scale": scale,
                    "images": len(known),
                    "mean": float(known.mean()) if len(known) else np.nan,
                    **{f"q{round(100 * q):02d}": float(value) for q, value in zip(QUANTILES, found, strict=True)},
                    "max": float(known.max()) if len(known) else np.nan,
                })
    return table_of(rows, title)


def draw_shifts(shifts: Mapping[str, Shifts], distance: str, bins: int, change: str) -> Figure:
    """Histograms over common bins: the distance, and beside it the distance over the size of the features.

    Args:
        shifts: By network.
        distance: "l2" or "mean_abs".
        bins: Their number, from 0 to the largest value of all networks.
        change: What was done to the images, in words.

    Returns:
        A figure of two panels; a dashed line is the median of a network.
    """
    words, size = DISTANCES[distance], "length" if distance == "l2" else "mean absolute value"
    count = max((len(held[distance]) for held in shifts.values()), default=0)
    with styled():
        fig = figure(8.2, 3.6)
        left, right = fig.subplots(1, 2)
        _panel(left, {name: held[distance] for name, held in shifts.items()}, bins)
        _panel(right, {name: relative(held, distance) for name, held in shifts.items()}, bins)
        left.set_ylabel("share of images")
        left.set_xlabel(f"{words} between the penultimate features\nof an image and of its changed version")
        right.set_xlabel(f"the same, over the {size} of the features\nof the image")
        handles, names = left.get_legend_handles_labels()
        fig.legend(handles, names, loc="outside upper center", ncols=legend_columns(names, 8.2))
        fig.supxlabel(f"{count} images, each changed once: {change}. Dashed: medians.", fontsize=7.6, color=FAINT)
    return fig


def _panel(ax: Axes, values: Mapping[str, NDArray[np.float64]], bins: int) -> None:
    """One histogram a network, over bins that they share."""
    colours = source_colours(list(values))
    known = {name: found[np.isfinite(found)] for name, found in values.items()}
    end = max((float(found.max(initial=0.0)) for found in known.values()), default=0.0) or 1.0
    edges = np.linspace(0.0, end, bins + 1)
    for name, found in known.items():
        shares = np.histogram(found, edges)[0] / max(len(found), 1)
        ax.stairs(shares, edges, color=colours[name], fill=True, alpha=0.22)
        ax.stairs(shares, edges, color=colours[name], linewidth=1.3, label=name)
        if len(found):
            ax.axvline(float(np.median(found)), color=colours[name], linestyle=(0, (4, 2)), linewidth=1.1)
    ax.set_xlim(0.0, end)
    ax.grid(axis="y")
