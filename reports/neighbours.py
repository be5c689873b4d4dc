"""Queries beside the train images that most help and most harm them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.scores import Scores
from ..influence.tables import Table
from .pictures import Sheet, as_picture
from .runs import Group, RunView, stack, variant_name
from .settings import ReportSettings
from .style import FAINT, HARMFUL, HELPFUL, INK, PALETTE, source_colours, styled

GAP = 0.25
PITCH = 1.06
"""From one picture to the next, in sides of a picture."""
DIRECTIONS = ("helpful", "harmful")
A_BAND = 3
"""Sources side by side; more of them are drawn below each other, two by two."""


def one_per_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first example of every class: a choice that nobody made.

    Args:
        labels: True class of every query [m].

    Returns:
        Row positions, in the order of the classes that occur.
    """
    return np.unique(labels, return_index=True)[1].astype(np.int64)


def shown_rows(group: Group) -> NDArray[np.int64]:
    """The queries that the report shows as pictures.

    Args:
        group: Runs to compare.

    Returns:
        The rows whose saliency was computed, where the runs agree on them; otherwise the first query of every class.
    """
    rows = [run.saliency_rows for run in group.drawn]
    first = rows[0]
    if first is not None and all(other is not None and np.array_equal(first, other) for other in rows):
        return np.asarray(first, dtype=np.int64)
    return one_per_class(group.drawn[0].main.queries.label)


class Neighbours:
    """One query of every class, with its most helpful and most harmful train images for each source.

    Args:
        group: Runs to compare; those of `group.first_seed` are shown.
        settings: How many neighbours.
    """

    def __init__(self, group: Group, settings: ReportSettings) -> None:
        self.group = group
        self.count = min(settings.neighbours, max(1, group.n // 2))
        self.rows = shown_rows(group)

    def __bool__(self) -> bool:
        return all(run.train_images is not None and run.query_images is not None for run in self.group.drawn)

    def frame(self) -> Table:
        """The neighbours in every variant of the scores.

        Returns:
            A row for each query, source, variant, direction and rank; `row` is the query's position among the queries,
            `query_id` and `train_id` are positions in the data sets.
        """
        tables = [
            self._table(run, variant, scores, int(row), direction)
            for run in self.group.drawn
            for variant, scores in run.scores.items()
            for row in self.rows
            for direction in DIRECTIONS
        ]
        return stack(tables, "Most helpful and most harmful train examples of the queries shown")

    def _table(self, run: RunView, variant: str, scores: Scores, row: int, direction: str) -> Table:
        found = _ranked(scores, row, direction, self.count)
        queries = scores.queries
        same = {
            **self.group.columns_of(run),
            "source": run.arm,
            "seed": run.seed,
            "variant": variant_name(variant),
            "row": row,
            "query_id": int(queries.index[row]),
            "query_class": run.class_name(int(queries.label[row])),
            "predicted_class": run.class_name(int(queries.prediction[row])),
            "direction": direction,
        }
        columns = {name: np.full(len(found), value) for name, value in same.items()}
        columns |= {name: found[name] for name in ("rank", "train_id", "score")}
        return Table({**columns, "train_class": np.array([run.class_name(int(c)) for c in found["label"]])})

    def plot(self) -> Figure:
        """The pictures, by the scores shown first.

        Returns:
            A figure with a row for each query, and more than once so many where there are more than `A_BAND` sources.
        """
        drawn = self.group.drawn
        bands = [drawn] if len(drawn) <= A_BAND else [drawn[j : j + 2] for j in range(0, len(drawn), 2)]
        width = 1 + len(bands[0]) * (self._span + 2 * GAP)
        pitch = len(self.rows) + 0.5  # the half row holds the next band's heading
        with styled():
            fig, sheet = Sheet.sized(width, pitch * len(bands) - 0.5, lines=2, side=0.82, header=0.75)
            for i, band in enumerate(bands):
                self._band(sheet, band, i * pitch)
        return fig

    @property
    def _span(self) -> float:
        """Width of one source's pictures."""
        return 2 * self.count * PITCH + GAP

    def _band(self, sheet: Sheet, drawn: Sequence[RunView], first: float) -> None:
        """Some sources side by side, from a row of the sheet on."""
        count, span, top = self.count, self._span, first * sheet.pitch
        colours = source_colours(self.group.order)
        sheet.text("query", 0.5, top - 0.18, color=FAINT)
        for j, run in enumerate(drawn):
            left = 1 + 2 * GAP + j * (span + 2 * GAP)
            sheet.text(run.arm, left + span / 2, top - 0.58, color=colours[run.arm], fontsize=11, weight="bold")
            sheet.rule((left, left + span), top - 0.4, colours[run.arm])
            sheet.text("most helpful", left + count * PITCH / 2, top - 0.18, color=HELPFUL)
            sheet.text("most harmful", left + count * PITCH + GAP + count * PITCH / 2, top - 0.18, color=HARMFUL)
            for i, row in enumerate(self.rows):
                for start, direction in zip((left, left + count * PITCH + GAP), DIRECTIONS, strict=True):
                    table = _ranked(run.main, int(row), direction, count)
                    label = int(run.main.queries.label[row]) if direction == "helpful" else None
                    _put(sheet, _images_of(run, table), table, start, first + i, label, run.class_names)
        for i, row in enumerate(self.rows):
            self._query(sheet, first + i, int(row))

    def _query(self, sheet: Sheet, place: float, row: int) -> None:
        run = self.group.drawn[0]
        assert run.query_images is not None
        queries = run.main.queries
        captions = [(run.class_name(int(queries.label[row])), INK), (f"id {queries.index[row]}", FAINT)]
        sheet.picture(as_picture(run.query_images[row]), 0.0, place, captions)


def draw_neighbours(
    query_image: NDArray[np.floating],
    images: NDArray[np.floating],
    table: Table,
    *,
    class_names: Sequence[str] = (),
    query_label: int | None = None,
    query_caption: str = "query",
    unit: str = "nats per unit weight",
    below: tuple[NDArray[np.floating], Table] | None = None,
) -> Figure:
    """One query and its neighbours.

    Args:
        query_image: [c, h, w] in [0, 1].
        images: Pictures [k, c, h, w] of the table's rows, in their order.
        table: What `Scores.top` or `Scores.bottom` gave; its title stands above the pictures.
        class_names: Name of every class; numbers are shown where it is empty.
        query_label: True class of the query; neighbours of another class are marked.
        query_caption: Second line under the query.
        unit: Unit of the scores.
        below: Another such pair of pictures and table, drawn below.

    Returns:
        The figure.
    """
    groups = [(HELPFUL, images, table)] + ([] if below is None else [(HARMFUL, *below)])
    longest = max(len(rows) for _, _, rows in groups)
    with styled():
        lines = 2 if below is None else 3  # the third leaves room for the heading of the pair below
        fig, sheet = Sheet.sized(1 + 2 * GAP + PITCH * max(longest, 1), len(groups), lines=lines, side=1.1, header=0.3)
        name = "" if query_label is None else _name(class_names, query_label)
        sheet.picture(as_picture(query_image), 0.0, 0, [(name, INK), (query_caption, FAINT)])
        sheet.text("query", 0.5, -0.15, color=FAINT)
        for i, (colour, pictures, rows) in enumerate(groups):
            words = f"{rows.title}, {unit}".removeprefix(", ")
            sheet.text(words, 1 + 2 * GAP, i * sheet.pitch - 0.15, color=colour, ha="left", fontsize=8)
            _put(sheet, pictures, rows, 1 + 2 * GAP, i, query_label, class_names)
    return fig


def _ranked(scores: Scores, row: int, direction: str, count: int) -> Table:
    return scores.top(query=row, k=count) if direction == "helpful" else scores.bottom(query=row, k=count)


def _images_of(run: RunView, table: Table) -> NDArray[np.floating]:
    """Pictures of a table's train examples: tables name positions in the data set, pictures are kept by row."""
    assert run.train_images is not None
    index = run.main.train.index
    order = np.argsort(index)
    return np.asarray(run.train_images[order[np.searchsorted(index, table["train_id"], sorter=order)]])


def _put(
    sheet: Sheet,
    images: NDArray[np.floating],
    table: Table,
    left: float,
    row: float,
    query_label: int | None,
    class_names: Sequence[str],
) -> None:
    """Neighbours side by side; those of another class than `query_label` are marked, none where it is None."""
    for j, (image, entry) in enumerate(zip(images, table.rows(), strict=True)):
        name, other = _name(class_names, entry["label"]), query_label is not None and entry["label"] != query_label
        label = (f"≠ {name}", PALETTE[1]) if other else (name, INK)
        sheet.picture(as_picture(image), left + PITCH * j, row, [label, (_score(entry["score"]), FAINT)])


def _score(value: float) -> str:
    """Three significant digits, without an exponent where that stays short."""
    if value == 0 or not 1e-3 <= abs(value) < 1e6:
        return f"{value:+.2g}".replace("e+0", "e").replace("e-0", "e-").replace("-", "−")
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:+.{digits}f}".replace("-", "−")


def _name(class_names: Sequence[str], label: int) -> str:
    name = str(class_names[label]) if 0 <= label < len(class_names) else str(label)
    return name if len(name) <= 13 else name[:12] + "…"
