"""Influence matrices sorted by class on both axes, and their class-by-class means."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage

from ..influence.tables import Table
from .blocks import Axis, Blocks, average
from .labels import variant_label
from .runs import DAMPED, UNDAMPED, Group, RunView, stack, table_of, variant_name
from .settings import ReportSettings
from .style import INK, SIGNED, figure, styled

PANELS_A_ROW = 3
NUMBERED_CLASSES = 12
NAMED_CLASSES = 30
TITLE = 42
"""Letters that a panel's title has room for on one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One matrix of the figure."""

    run: RunView
    variant: str
    label: str
    blocks: Blocks


class HeatMaps:
    """Heat maps of one group: for each variant of the scores a row, or rows, with a panel for each source.

    Each matrix is divided by its root mean square score (its Frobenius norm up to the number of scores), so that sources
    whose scores differ in size can be seen on one colour scale.

    Args:
        group: Runs to compare; those of `group.first_seed` are shown.
        side: "test" or "train".
        settings: Block count and colour clip.
    """

    def __init__(self, group: Group, side: str, settings: ReportSettings) -> None:
        self.group, self.side, self.settings = group, side, settings
        self.panels = [
            _panel(run, variant, side, settings.pixels)
            for variant in _variants(group)
            for run in group.drawn
            if run.side(variant, side) is not None
        ]
        scaled = [np.abs(p.blocks.values / (p.blocks.rms or 1.0)).ravel() for p in self.panels]
        self.limit = float(np.quantile(np.concatenate(scaled), settings.clip)) if scaled else 0.0

    def __bool__(self) -> bool:
        return bool(self.panels)

    def frame(self) -> Table:
        """Class-by-class means.

        Returns:
            A row for each panel, query class and train class: mean score, and the same over the r.m.s. score.
        """
        return stack(
            [_class_table(self.group, self.side, p) for p in self.panels],
            "Mean influence by class of query and of train example",
        )

    def facts(self) -> Table:
        """What the heat maps were scaled by.

        Returns:
            A row for each panel: norm, r.m.s. score, colour limit and the share of blocks beyond it.
        """
        rows = [
            {
                **self.group.columns_of(p.run),
                "queries": self.side,
                "source": p.run.arm,
                "seed": p.run.seed,
                "variant": variant_name(p.variant),
                "frobenius": p.blocks.frobenius,
                "rms": p.blocks.rms,
                "limit": self.limit,
                "share_beyond": float(np.mean(np.abs(p.blocks.values / (p.blocks.rms or 1.0)) > self.limit)),
            }
            for p in self.panels
        ]
        return table_of(rows, "Scale of the influence heat maps")

    def plot(self) -> Figure:
        """The heat maps.

        Returns:
            A figure; rows of each panel are queries, columns train examples, both by class.
        """
        with styled():
            fig, cells = self._grid(height=3.3)
            for panel, ax in zip(self.panels, cells, strict=True):
                image = _heat(ax, panel, self.limit)
            fig.colorbar(
                image, ax=cells, shrink=0.6, pad=0.02, extend="both", label="score / r.m.s. score (positive: helpful)"
            )
            self._label(cells)
        return fig

    def plot_classes(self) -> Figure:
        """The class-by-class means, with numbers where there is room.

        Returns:
            A figure laid out as `plot`.
        """
        means = [p.blocks.class_means / (p.blocks.rms or 1.0) for p in self.panels]
        limit = max((float(np.nanmax(np.abs(m), initial=0.0)) for m in means), default=0.0) or 1.0
        with styled():
            fig, cells = self._grid(height=3.1)
            for panel, mean, ax in zip(self.panels, means, cells, strict=True):
                image = _means(ax, panel, mean, limit)
            fig.colorbar(image, ax=cells, shrink=0.6, pad=0.02, label="mean score / r.m.s. score")
            self._label(cells)
        return fig

    def _grid(self, height: float) -> tuple[Figure, list[Axes]]:
        variants = Counter(p.variant for p in self.panels)
        columns = min(PANELS_A_ROW, max(variants.values()))
        rows = {variant: -(-count // columns) for variant, count in variants.items()}
        fig = figure(3.5 * columns + 1.2, height * sum(rows.values()) + 0.3)
        grid = fig.subplots(sum(rows.values()), columns, squeeze=False).ravel().tolist()
        cells: list[Axes] = []
        for variant, count in variants.items():
            line = [grid.pop(0) for _ in range(rows[variant] * columns)]
            for spare in line[count:]:
                spare.remove()
            cells += line[:count]
        return fig, cells

    def _label(self, cells: list[Axes]) -> None:
        for i, (panel, ax) in enumerate(zip(self.panels, cells, strict=True)):
            long = len(panel.run.arm) + len(panel.label) > TITLE
            ax.set_title(f"{panel.run.arm},{chr(10) if long else ' '}{panel.label}")
            place = ax.get_subplotspec()
            assert place is not None
            first, last = place.is_first_col(), not any(_below(place, other) for other in cells[i + 1 :])
            ax.set_ylabel(f"{self.side} queries, by class" if first else "")
            ax.set_xlabel("train examples, by class" if last else "")
            ax.tick_params(labelleft=first, labelbottom=last)


def _below(place: SubplotSpec, other: Axes) -> bool:
    """Whether other axes lie in the same column, further down."""
    there = other.get_subplotspec()
    return there is not None and there.colspan == place.colspan and there.rowspan.start > place.rowspan.start


def _variants(group: Group) -> list[str]:
    held = {variant for run in group.drawn for variant in run.scores}
    shown = [v for v in (UNDAMPED, DAMPED) if v in held]
    return shown or sorted(held)[:1]


def _panel(run: RunView, variant: str, side: str, pixels: int) -> Panel:
    scores = run.side(variant, side)
    assert scores is not None
    blocks = average(scores.matrix, scores.queries.label, scores.train.label, pixels, scores.on_itself)
    return Panel(run, variant, variant_label(run, variant), blocks)


def _class_table(group: Group, side: str, panel: Panel) -> Table:
    blocks = panel.blocks
    rows = [
        {
            **group.columns_of(panel.run),
            "queries": side,
            "source": panel.run.arm,
            "seed": panel.run.seed,
            "variant": variant_name(panel.variant),
            "query_class": panel.run.class_name(int(q)),
            "train_class": panel.run.class_name(int(c)),
            "mean": float(blocks.class_means[i, j]),
            "mean_over_rms": float(blocks.class_means[i, j] / (blocks.rms or 1.0)),
        }
        for i, q in enumerate(blocks.rows.classes)
        for j, c in enumerate(blocks.columns.classes)
    ]
    return table_of(rows, "")


def _heat(ax: Axes, panel: Panel, limit: float) -> AxesImage:
    blocks = panel.blocks
    limit = limit or 1.0
    image = ax.imshow(
        blocks.values / (blocks.rms or 1.0),
        cmap=SIGNED,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
    )
    for axis, draw in ((blocks.rows, ax.axhline), (blocks.columns, ax.axvline)):
        for bound in axis.bounds[1:-1]:
            draw(bound - 0.5, color=INK, linewidth=0.35, alpha=0.55)
    _class_ticks(
        ax,
        panel,
        (blocks.columns.bounds[1:] + blocks.columns.bounds[:-1] - 1) / 2,
        (blocks.rows.bounds[1:] + blocks.rows.bounds[:-1] - 1) / 2,
    )
    return image


def _means(ax: Axes, panel: Panel, mean: np.ndarray, limit: float) -> AxesImage:
    image = ax.imshow(mean, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    if max(mean.shape) <= NUMBERED_CLASSES:
        for (i, j), value in np.ndenumerate(mean):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.55 * limit else INK
                text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
                number = ax.text(j, i, text, ha="center", va="center", fontsize=5.8, color=colour)
                number.set_in_layout(False)  # inside its cell anyway: the layout need not measure a hundred numbers
    _class_ticks(ax, panel, np.arange(mean.shape[1]), np.arange(mean.shape[0]))
    return image


def _class_ticks(ax: Axes, panel: Panel, columns: np.ndarray, rows: np.ndarray) -> None:
    """Name the classes at the middle of their span; every so many of them when there are too many to read."""
    for set_ticks, places, axis in (
        (ax.set_xticks, columns, panel.blocks.columns),
        (ax.set_yticks, rows, panel.blocks.rows),
    ):
        every = -(-len(axis.classes) // NAMED_CLASSES)
        names = _names(panel.run, axis)[::every]
        turned = set_ticks == ax.set_xticks and sum(map(len, names)) > NAMED_CLASSES
        set_ticks(places[::every], names, rotation=90 if turned else 0)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(True)


def _names(run: RunView, axis: Axis) -> list[str]:
    return [_short(run.class_name(int(c))) for c in axis.classes]


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
