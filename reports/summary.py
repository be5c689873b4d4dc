"""The numbers of a report that a terminal shows: accuracies and the nearest neighbours' classes, by source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..influence.tables import Table
from .tabular import WIDE

Row = Mapping[str, Any]


def summary(stats: Mapping[str, Any]) -> list[Table]:
    """The main table of every group of runs.

    Args:
        stats: What stats.json holds.

    Returns:
        One table a group: a column for each source and for each difference between sources, in percent with intervals; with
        more than three sources a line for each.
    """
    return [_group_table(stats, group) for group in stats["groups"]]


def _group_table(stats: Mapping[str, Any], group: Mapping[str, Any]) -> Table:
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    shares = [row for row in _rows(stats, "accuracy", group) if row["set"] == "test"]
    matches = [
        row for row in _rows(stats, "class_match", group) if (row["queries"], row["measure"]) == ("test", "rank 1")
    ]
    long = len({row["source"] for row in (*shares, *matches)}) > WIDE
    for row in shares:
        _enter(lines, "test accuracy", row, long)
    for row in matches:
        _enter(lines, f"class match: {row['method']}", row, long)
    heads = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    first = ["percent [95% interval]", "source"] if long else ["percent [95% interval]"]
    columns = {name: np.array([key[i] for key in lines]) for i, name in enumerate(first)}
    columns |= {head: np.array([cells.get(head, "") for cells in lines.values()]) for head in heads}
    seeds = len(group["seeds"])
    title = (
        f"{group['data']}, {group['n']} train examples, {_blocks(group['k'])}, {seeds} seed{'s' if seeds > 1 else ''} "
        "(class match: the first neighbour has the test query's true class)"
    )
    return Table(columns, title)


def _blocks(k: int | None) -> str:
    if k is None:
        return "every k"
    if k == 0:
        return "the head alone"
    return f"the head and the last {'block' if k == 1 else f'{k} blocks'}"


def _enter(lines: dict[tuple[str, ...], dict[str, str]], name: str, row: Row, long: bool) -> None:
    """Put a number into its line: beside those of other sources, or into one of its own."""
    if long:
        lines.setdefault((name, row["source"]), {})[f"minus {row['minus']}" if row["minus"] else "share"] = _cell(row)
    else:
        lines.setdefault((name,), {})[_column(row)] = _cell(row)


def _rows(stats: Mapping[str, Any], table: str, group: Mapping[str, Any]) -> Iterator[Row]:
    columns = stats["tables"][table]["columns"]
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if all(row[name] == group[name] for name in ("data", "k", "n")):
            yield row


def _column(row: Row) -> str:
    return f"{row['source']} minus {row['minus']}" if row["minus"] else str(row["source"])


def _cell(row: Row) -> str:
    sign = "+" if row["minus"] else ""
    mean, low, high = (
        None if row[name] is None else f"{100 * row[name]:{sign}.1f}" for name in ("mean", "low", "high")
    )
    return "" if mean is None else mean if low is None or high is None else f"{mean} [{low}, {high}]"


def evaluation_summary(stats: Mapping[str, Any]) -> list[Table]:
    """The tables of an evaluation that a terminal shows, to three digits and with intervals beside their numbers.

    Args:
        stats: What stats.json holds.

    Returns:
        Methods, and sets and wrong labels where these were looked at.
    """
    found = []
    for name in ("methods", "groups", "mislabel"):
        if name in stats["tables"]:
            held = stats["tables"][name]
            columns = {key: values for key, values in held["columns"].items() if key != "kind"}
            found.append(Table(_with_intervals(columns), held["title"]))
    return found


def _with_intervals(columns: Mapping[str, list[Any]]) -> dict[str, NDArray[Any]]:
    """Numbers in words, and the ends of an interval in the cell of its number."""
    out: dict[str, NDArray[Any]] = {}
    ends = {name.rsplit("_", 1)[0] for name in columns if name.endswith("_low")}
    for name, values in columns.items():
        if name.endswith(("_low", "_high")):
            continue
        stem = name if name in ends else name.split("_")[0]
        shown = stem in ends and f"{stem}_low" in columns and name in {stem, f"{stem}_pearson"}
        lows, highs = (columns[f"{stem}_{end}"] if shown else [None] * len(values) for end in ("low", "high"))
        out[name.replace("_", " ")] = np.array([
            _number(value, low, high) for value, low, high in zip(values, lows, highs, strict=True)
        ])
    return out


def _number(value: Any, low: Any, high: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
