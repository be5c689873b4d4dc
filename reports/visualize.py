"""Images that raise units of the penultimate layer, network beside network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.tables import Table
from .labels import number
from .pictures import Sheet, as_picture
from .runs import table_of
from .style import FAINT, INK, source_colours, styled

PITCH, GAP = 1.08, 0.35


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ascents:
    """What one network made of every start: arrays begin with [starts, units]."""

    name: str
    units: NDArray[np.int64]
    """Numbers of the units [u]."""
    chosen: str
    """How they were chosen, in words."""
    starts: NDArray[np.float32]
    """Images to begin with [s, c, h, w]."""
    images: NDArray[np.float32]
    """Where the ascents ended [s, u, c, h, w]."""
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def moved(self) -> NDArray[np.float64]:
        """Euclidean distance [s, u] from start to end."""
        apart: NDArray[np.float64] = (self.images - self.starts[:, None]).astype(np.float64)
        lengths: NDArray[np.float64] = np.sqrt((apart**2).sum(axis=(2, 3, 4)))
        return lengths


def ascents_table(ascents: Sequence[Ascents], starts: Sequence[str], title: str) -> Table:
    """The activations before and after.

    Args:
        ascents: A network each.
        starts: What the starts are called.
        title: What was done.

    Returns:
        A row for each network, start and unit.
    """
    rows = [
        {
            "source": one.name,
            "start": start,
            "unit": int(unit),
            "before": float(one.before[i, j]),
            "after": float(one.after[i, j]),
            "moved": float(one.moved[i, j]),
            "chosen": one.chosen,
        }
        for one in ascents
        for i, start in enumerate(starts)
        for j, unit in enumerate(one.units)
    ]
    return table_of(rows, title)


def draw_ascents(ascents: Sequence[Ascents], starts: Sequence[str], caption: str) -> Figure:
    """Starts in the first row; below, for each network, the images that its units made of each.

    Args:
        ascents: A network each, with as many units and starts as the others.
        starts: What the starts are called.
        caption: Words below the pictures.

    Returns:
        The figure; the unit, and its activation before and after, stand under each image.
    """
    colours = source_colours([one.name for one in ascents])
    lines = {one.name: one.name.replace(", ", "\n") for one in ascents}
    left = max(1.0, 0.2 + 0.11 * max(len(line) for words in lines.values() for line in words.split("\n")))
    count = len(ascents[0].units)
    span = count * PITCH + GAP
    width = left + span * len(starts) - GAP
    with styled():
        fig, sheet = Sheet.sized(width, 1 + len(ascents) + 0.2, lines=2, side=1.0, header=0.1)
        sheet.text("start", left - 0.12, 0.5, ha="right", color=FAINT)
        for i, start in enumerate(starts):
            middle = left + i * span + (count * PITCH - PITCH) / 2
            sheet.picture(as_picture(ascents[0].starts[i]), middle, 0, [(start, INK)])
        for row, one in enumerate(ascents, start=1):
            place = left - 0.12, row * sheet.pitch + 0.5
            sheet.text(lines[one.name], *place, ha="right", color=colours[one.name], weight="bold")
            for i in range(len(starts)):
                for j, unit in enumerate(one.units):
                    rise = f"{number(float(one.before[i, j]))} → {number(float(one.after[i, j]))}"
                    words = [(f"unit {unit}", INK), (rise, FAINT)]
                    sheet.picture(as_picture(one.images[i, j]), left + i * span + j * PITCH, row, words)
        sheet.text(caption, 0.0, (1 + len(ascents)) * sheet.pitch + 0.1, ha="left", color=FAINT, fontsize=7.6)
    return fig
