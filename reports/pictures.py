"""Sheets of small pictures with a caption under each, drawn in one set of axes: hundreds of axes would be slow."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from .style import INK

CAPTION_LINE = 0.2
"""Height of a line of caption, in sides of a picture."""


def as_picture(image: Float[np.ndarray, "c h w"]) -> NDArray[np.float64]:
    """An image as matplotlib shows it.

    Args:
        image: Values in [0, 1]; one channel is grey, three are red, green and blue, any other number is averaged to grey.

    Returns:
        [h, w, 3], clipped to [0, 1].
    """
    channels = np.clip(np.asarray(image, dtype=np.float64), 0.0, 1.0)
    if len(channels) != 3:
        channels = np.repeat(channels.mean(axis=0, keepdims=True), 3, axis=0)
    return np.moveaxis(channels, 0, -1)


class Sheet:
    """A grid of square pictures with captions.

    Args:
        fig: Figure to fill.
        width: Sides of a picture that the sheet is wide.
        rows: Rows of pictures.
        lines: Lines of caption under each picture.
        header: Room above the first row, in sides of a picture.
    """

    def __init__(self, fig: Figure, width: float, rows: float, lines: int, header: float = 0.5) -> None:
        self.pitch = 1.05 + CAPTION_LINE * lines + 0.1
        self.ax: Axes = fig.add_axes((0, 0, 1, 1))
        self.ax.set_xlim(-0.06, width + 0.06)
        self.ax.set_ylim(rows * self.pitch, -header)
        self.ax.set_axis_off()

    @classmethod
    def sized(cls, width: float, rows: float, lines: int, side: float, header: float = 0.5) -> tuple[Figure, Sheet]:
        """A figure that just holds a sheet.

        Args:
            width: Sides of a picture that the sheet is wide.
            rows: Rows of pictures.
            lines: Lines of caption under each picture.
            side: Side of a picture, inches.
            header: Room above the first row, in sides of a picture.

        Returns:
            The figure and its sheet.
        """
        pitch = 1.05 + CAPTION_LINE * lines + 0.1
        fig = Figure(figsize=(side * (width + 0.12), side * (rows * pitch + header)))
        return fig, cls(fig, width, rows, lines, header)

    def picture(self, image: NDArray[Any], x: float, row: float, captions: list[tuple[str, str]]) -> None:
        """Put one picture down.

        Args:
            image: [h, w, 3] in [0, 1]; drawn to fill a square.
            x: Left edge, in sides of a picture.
            row: Row of the sheet.
            captions: Lines of text and their colours.
        """
        y = row * self.pitch
        height, width = image.shape[:2]
        w, h = (1.0, height / width) if width >= height else (width / height, 1.0)
        left, top = x + (1 - w) / 2, y + (1 - h) / 2
        self.ax.imshow(image, extent=(left, left + w, top + h, top), interpolation="nearest", aspect="auto", zorder=1)
        self.ax.add_patch(Rectangle((left, top), w, h, fill=False, edgecolor="#b4b9c0", linewidth=0.6, zorder=2))
        for i, (text, colour) in enumerate(captions):
            self.text(text, x + 0.5, y + 1.05 + CAPTION_LINE * (i + 0.5), color=colour, fontsize=7.6)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        color: str = INK,
        fontsize: float = 9.0,
        ha: str = "center",
        weight: str = "normal",
    ) -> None:
        """Words anywhere on the sheet.

        Args:
            text: The words, taken literally.
            x: Sides of a picture from the left.
            y: Sides of a picture from the top of the first row; negative in the header.
            color: Ink.
            fontsize: Points.
            ha: "left", "center" or "right".
            weight: "normal" or "bold".
        """
        self.ax.text(
            x, y, text, color=color, fontsize=fontsize, ha=ha, va="center", fontweight=weight, parse_math=False
        )

    def rule(self, x: tuple[float, float], y: float, color: str) -> None:
        """A thin horizontal line.

        Args:
            x: Left and right end.
            y: Height, as in `text`.
            color: Ink.
        """
        self.ax.plot(x, (y, y), color=color, linewidth=1.4, solid_capstyle="butt")
