"""Estimates as tables of the page: sources beside each other, and the difference from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..influence.tables import Table
from .output import Cell, Grid

WIDE = 3
"""Most sources that are put beside each other; more of them are put below each other."""

Cells = Mapping[tuple[str, ...], Mapping[str, Any]]
"""Rows of a frame by row key, measure, source and what was taken away."""
Rows = Mapping[tuple[str, ...], Sequence[str]]
Shape = tuple[list[str], int, list[list[Cell]]]
"""Headings, columns a measure, and lines."""


def estimate_grid(
    frame: Table,
    rows: Mapping[tuple[str, ...], Sequence[str]],
    row_columns: Sequence[str],
    measures: Mapping[str, str],
    sources: Sequence[str],
    head: Sequence[str],
    file: str,
    caption: str,
) -> Grid:
    """A table with a line for each row key, and for each measure a column for every source and every difference.

    With more sources than `WIDE` there is a line for each of them, with two columns a measure: it, and the difference.

    Args:
        frame: Rows with mean, low, high, source and minus, and the columns named below.
        rows: Value of `row_columns` of each line, as text, to the words it begins with.
        row_columns: Columns of the frame that tell lines apart.
        measures: Value of the column "measure", or "" where the frame has none, to its heading.
        sources: In the order shown; differences are taken from the first.
        head: Headings of the words that lines begin with.
        file: CSV with the same numbers.
        caption: Words above the table.

    Returns:
        The part of the page.
    """
    cells = {
        (*(str(row[name]) for name in row_columns), str(row.get("measure", "")), row["source"], row["minus"]): row
        for row in frame.rows()
    }
    shape = _wide if len(sources) <= WIDE else _long
    names, pairs, body = shape(cells, rows, measures, sources)
    spans = [("", len(head) + names.count("source")), *((words, pairs) for words in measures.values())]
    spans = spans if len(measures) > 1 else []
    return Grid(caption=caption, head=[*head, *names], body=body, file=file, spans=spans)


def _wide(cells: Cells, rows: Rows, measures: Mapping[str, str], sources: Sequence[str]) -> Shape:
    """Sources and differences beside each other."""
    pairs = [(s, "") for s in sources] + [(s, sources[0]) for s in sources[1:]]
    body: list[list[Cell]] = [
        [*words, *(estimate(cells.get((*key, measure, *pair))) for measure in measures for pair in pairs)]
        for key, words in rows.items()
    ]
    names = [f"{source} − {minus}" if minus else source for source, minus in pairs]
    return names * len(measures), len(pairs), body


def _long(cells: Cells, rows: Rows, measures: Mapping[str, str], sources: Sequence[str]) -> Shape:
    """A line for each source that there is a number of; the words of a line stand before the first of them."""
    base, body = sources[0], []
    for key, words in rows.items():
        held = [s for s in sources if any((*key, measure, s, "") in cells for measure in measures)]
        for i, source in enumerate(held):
            pairs = [(source, ""), (source, base)]
            found = [cells.get((*key, measure, *pair)) for measure in measures for pair in pairs]
            body.append([*(words if i == 0 else [""] * len(words)), source, *map(estimate, found)])
    return ["source", *["share", f"− {base}"] * len(measures)], 2, body


def estimate(row: Mapping[str, Any] | None, *, share: bool = True) -> Cell:
    """An estimate in words.

    Args:
        row: mean, low, high and minus; None: there is none.
        share: A share in percent, or a difference of shares in points, with its interval as far as shares can go; otherwise the
            numbers themselves, cut at 0.

    Returns:
        The mean, and below it its interval where it has one.
    """
    if row is None:
        return "–"
    signed = "+" if row["minus"] else ""
    parts = [row[name] for name in ("mean", "low", "high")]
    if share:
        least = -1.0 if row["minus"] else 0.0
        parts = [100 * min(max(part, least), 1.0) for part in parts]
    elif not row["minus"]:
        parts = [max(part, 0.0) for part in parts]
    digits = ".1f" if share or abs(parts[0]) >= 10 else ".2g"
    mean, low, high = (f"{part:{signed}{digits}}".replace("-", "−") for part in parts)
    return mean if row["low"] != row["low"] else (mean, f"{low} to {high}")
