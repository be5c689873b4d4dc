"""The report of an evaluation against retraining: from its tables to figures, sentences and one page that holds them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..influence.tables import Table
from .evaluation_figures import draw_curve, draw_leave_one_out, draw_methods, draw_removal
from .output import Cell, Grid, Output, Paragraph, Part, Section, grid
from .runs import table_of

SCHEMA, SCHEMA_VERSION = "upweight-evaluation-stats", 1
METHOD_COLUMNS = {
    "method": ("method", ""),
    "lds": ("LDS", "lds"),
    "loo_pearson": ("LOO Pearson", "loo"),
    "loo_spearman": ("LOO Spearman", ""),
    "match_1": ("class match, rank 1", ""),
    "match_5": ("first 5", ""),
}
"""Column to heading, and what the names of the ends of its interval begin with."""
MISLABEL_COLUMNS = {
    "method": ("inspected by", ""),
    "auc": ("AUC", "auc"),
    "found_at_10": ("found at 10% inspected", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """LDS against damping and cutoff."""

    table: Table
    given: float
    """Damping of the scores, relative to the largest eigenvalue; 0 where they have none."""
    recommended: float
    """Likewise, of the one that half of the parts recommend."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """All that an evaluation found, ready to be shown; what was not asked for is None or empty."""

    title: str
    facts: Sequence[tuple[str, str]]
    methods: Table
    ceiling: float = float("nan")
    differences: Table | None = None
    """LDS of the main scores minus that of every other method."""
    curve: Curve | None = None
    scatter: tuple[NDArray[Any], NDArray[Any], str] | None = None
    """Predicted and measured leave-one-out changes, and their correlation in words."""
    mislabel: Table | None = None
    removal: Table | None = None
    groups: Table | None = None
    refits: Table = field(default_factory=lambda: table_of([], "Refits", ("truth",)))
    conclusions: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_evaluation(found: Evaluated, out: Path, *, dpi: int = 150) -> dict[str, Any]:
    """Write index.html, its figures (PNG), its tables (CSV) and stats.json.

    Args:
        found: What was found.
        out: Folder; made when it is not there, files of the same names in it are replaced.
        dpi: Resolution of the figures, in dots per inch.

    Returns:
        What stats.json holds.
    """
    output = Output(out, dpi)
    sections = [_methods(found, output)]
    for make in (_curve, _scatter, _removal, _mislabel):
        made = make(found, output)
        if made is not None:
            sections.append(made)
    head = {name: name.replace("_", " ") for name in found.refits.columns}
    refits = grid(found.refits, head, output.add("refits", found.refits), found.refits.title)
    page = {
        "title": found.title,
        "facts": found.facts,
        "conclusions": [("", found.conclusions)] if found.conclusions else [],
        "sections": sections,
        "runs": refits,
        "version": __version__,
    }
    stats = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "upweight": __version__,
        "settings": dict(found.settings),
        "conclusions": list(found.conclusions),
        "ceiling": found.ceiling if np.isfinite(found.ceiling) else None,
        "figures": output.figures,
        "tables": output.write_tables(),
    }
    output.write_page("evaluation.html", page, stats)
    return stats


def _methods(found: Evaluated, output: Output) -> Section:
    file = output.add("methods", found.methods)
    parts: list[Part] = [_with_intervals(found.methods, METHOD_COLUMNS, file)]
    if "lds" in found.methods.columns:
        caption = (
            f"Linear datamodeling score with its 95% interval; squares are baselines that need no gradient of the "
            f"network. All numbers: {file}."
        )
        drawn = draw_methods(found.methods, found.ceiling)
        parts.append(output.picture("methods", drawn, "Linear datamodeling score of every method", caption))
    if found.differences is not None and len(found.differences):
        held = output.add("differences", found.differences)
        head = {"method": "against", "difference": "difference", "low": "from", "high": "to", "decided": "decided"}
        parts.append(grid(found.differences, head, held, found.differences.title, folded=True))
    return Section(anchor="methods", heading="How well the scores foretell retraining", parts=parts)


def _curve(found: Evaluated, output: Output) -> Section | None:
    if found.curve is None:
        return None
    curve, file = found.curve, output.add("damping_curve", found.curve.table)
    drawn = draw_curve(curve.table, found.ceiling, curve.given, curve.recommended)
    caption = f"LDS against damping, and against the cutoff of an undamped pseudo-inverse, with 95% bands. All numbers: {file}."
    picture = output.picture("damping-curve", drawn, "LDS against damping and cutoff", caption)
    return Section(anchor="damping", heading="Damping", parts=[Paragraph(text=curve.sentence), picture])


def _scatter(found: Evaluated, output: Output) -> Section | None:
    if found.scatter is None:
        return None
    predicted, actual, words = found.scatter
    caption = "A point a query and left-out train example, darker where there are many; the line is equality."
    drawn = draw_leave_one_out(predicted, actual, words)
    picture = output.picture("leave-one-out", drawn, "Measured against predicted leave-one-out changes", caption)
    return Section(anchor="leave-one-out", heading="One example left out", parts=[picture])


def _removal(found: Evaluated, output: Output) -> Section | None:
    if found.removal is None:
        return None
    file = output.add("removal", found.removal)
    caption = (
        "Measured rise of a query's loss when a set chosen for it is taken away: means over queries, bands one standard error; "
        f"dashed: predicted through the curvature. All numbers: {file}."
    )
    parts: list[Part] = [output.picture("removal", draw_removal(found.removal), "Rise of loss by set size", caption)]
    if found.groups is not None:
        head = {name: name.replace("_", " ") for name in found.groups.columns}
        parts.append(grid(found.groups, head, output.add("groups", found.groups), found.groups.title))
    return Section(anchor="sets", heading="Sets taken away", parts=parts)


def _mislabel(found: Evaluated, output: Output) -> Section | None:
    if found.mislabel is None:
        return None
    part = _with_intervals(found.mislabel, MISLABEL_COLUMNS, output.add("mislabel", found.mislabel))
    return Section(anchor="mislabel", heading="Wrong labels", parts=[part])


def _with_intervals(table: Table, columns: Mapping[str, tuple[str, str]], file: str) -> Grid:
    """Some columns of a table, an interval in small words below its number; columns that it lacks are left out."""
    shown = {name: entry for name, entry in columns.items() if name in table.columns}
    body = [[_cell(row, name, ends) for name, (_, ends) in shown.items()] for row in table.rows()]
    return Grid(caption=table.title, head=[words for words, _ in shown.values()], body=body, file=file)


def _cell(row: Mapping[str, Any], name: str, ends: str) -> Cell:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    if not np.isfinite(value):
        return "–"
    if not ends or not np.isfinite(row[f"{ends}_low"]):
        return _signed(value)
    return _signed(value), f"{_signed(row[f'{ends}_low'])} to {_signed(row[f'{ends}_high'])}"


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")
