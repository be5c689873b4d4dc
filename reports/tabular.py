"""Estimates as tables of the page: sources beside each other, and the difference from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..influence.tables import Table
from .output import Cell, Grid


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
    pairs = [(s, "") for s in sources] + [(s, sources[0]) for s in sources[1:]]
    body: list[list[Cell]] = [
        [*words, *(estimate(cells.get((*key, measure, *pair))) for measure in measures for pair in pairs)]
        for key, words in rows.items()
    ]
    names = [f"{source} − {minus}" if minus else source for source, minus in pairs]
    spans = [("", len(head)), *((words, len(pairs)) for words in measures.values())] if len(measures) > 1 else ()
    return Grid(caption=caption, head=[*head, *names * len(measures)], body=body, file=file, spans=spans)


def estimate(row: Mapping[str, Any] | None, *, share: bool = True) -> Cell:
    """An estimate in words.

    Args:
        row: mean, low, high and minus; None: there is none.
        share: A share in percent, or a difference of shares in points, with its interval as far as shares can go; otherwise the
            numbers themselves.

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
    digits = ".1f" if share or abs(parts[0]) >= 10 else ".2g"
    mean, low, high = (f"{part:{signed}{digits}}".replace("-", "−") for part in parts)
    return mean if row["low"] != row["low"] else (mean, f"{low} to {high}")
