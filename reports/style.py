"""One look for every figure. Figures are made without pyplot, so no backend is chosen and nothing global is left behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

# Okabe and Ito's palette, told apart with any colour vision; the order keeps the first two far apart in lightness as well.
# From the eighth on, darker and less distinct ones of Tol's: comparisons of so many arms are read with their markers.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6b6b6b"),
    *("#332288", "#882255", "#999933", "#44AA99", "#661100"),
)
PALETTE_ERROR = 12
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
INK = "#1c2026"
FAINT = "#68707a"
HELPFUL = "#2166ac"
HARMFUL = "#b2182b"
SIGNED = "RdBu"  # red below zero (harmful), white at zero, blue above (helpful)

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#b4b9c0",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e7e9ec",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#5a6068",
    "ytick.color": "#5a6068",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "figure.dpi": 100.0,
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "svg.fonttype": "none",
}


def styled() -> AbstractContextManager[None]:
    """The report's look, for a `with` block; rcParams are as they were afterwards.

    Returns:
        A context manager.
    """
    return matplotlib.rc_context(RC)


def figure(width: float, height: float) -> Figure:
    """An empty figure that spaces its own axes.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        The figure; call inside `styled()`.
    """
    return Figure(figsize=(width, height), layout="constrained")


def source_colours(sources: Sequence[str]) -> dict[str, str]:
    """One colour for each source model or arm, the same in every figure.

    Args:
        sources: Names in the order of the report.

    Returns:
        Source name to colour.
    """
    return {source: PALETTE[i % len(PALETTE)] for i, source in enumerate(sources)}


def source_markers(sources: Sequence[str]) -> dict[str, str]:
    """One marker for each source model or arm: they stay apart in print without colour.

    Args:
        sources: Names in the order of the report.

    Returns:
        Source name to matplotlib marker.
    """
    return {source: MARKERS[i % len(MARKERS)] for i, source in enumerate(sources)}


def spread(count: int) -> NDArray[np.float64]:
    """Where the points of several arms lie about the middle of their line.

    Args:
        count: How many.

    Returns:
        Distances from the middle, in heights of a line, ascending; at most 0.38.
    """
    reach = min(0.38, 0.085 * count)
    return np.linspace(-reach, reach, count) if count > 1 else np.zeros(1)


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many columns a legend above a figure has room for.

    Args:
        names: Its entries.
        width: Inches.

    Returns:
        A number of columns, at least 1, whose entries fit side by side.
    """
    entry = 0.55 + 0.075 * max((len(name) for name in names), default=1)  # handle and gap, and a letter of 8.5 points
    return min(max(1, len(names)), max(1, int(width / entry)))


def to_png(drawn: Figure, dpi: int) -> bytes:
    """A figure as PNG.

    Args:
        drawn: The figure.
        dpi: Dots per inch.

    Returns:
        The bytes of the file; no date or version in it, so equal figures give equal files.
    """
    stream = BytesIO()
    with styled():
        drawn.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def smaller(png: bytes) -> bytes:
    """The same picture with a palette of 256 colours, for the page: about a third of the bytes.

    Args:
        png: A PNG file.

    Returns:
        Another one whose colours are off by at most `PALETTE_ERROR` of 255 steps; the first where that cannot be had, as with
        photographs.
    """
    image = Image.open(BytesIO(png)).convert("RGB")
    few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(few.convert("RGB"), dtype=np.int16) - np.asarray(image, dtype=np.int16))
    if error.max() > PALETTE_ERROR:
        return png
    stream = BytesIO()
    few.save(stream, "PNG", optimize=True)
    return stream.getvalue()


class Stroke(NamedTuple):
    """The look of one line."""

    colour: str
    marker: str
    dash: Any
    """A matplotlib line style."""


def strokes(lines: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Stroke]:
    """A look for each line that is named by two things, no two alike in any figure that can be read.

    Args:
        lines: Names, such as source and recipe, in the order shown.

    Returns:
        Lines to looks: whichever name has more values takes the colours, the other one markers and dashes; where colours or
        dashes would run out, colour, marker and dash change from line to line.
    """
    firsts, seconds = (list(dict.fromkeys(line[side] for line in lines)) for side in (0, 1))
    swap = len(seconds) > len(firsts)
    many, few = (seconds, firsts) if swap else (firsts, seconds)
    if len(many) <= len(PALETTE) and 1 < len(few) <= len(DASHES):
        at = {line: (many.index(line[swap]), few.index(line[not swap])) for line in lines}
        return {line: Stroke(PALETTE[i], MARKERS[j], DASHES[j]) for line, (i, j) in at.items()}
    colours, looks = len(PALETTE), len(DASHES)
    return {
        line: Stroke(PALETTE[i % colours], MARKERS[(i + i // colours) % len(MARKERS)], DASHES[i // colours % looks])
        for i, line in enumerate(dict.fromkeys(lines))
    }
