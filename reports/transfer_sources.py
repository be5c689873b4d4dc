"""Sources that differ in the radius of their training: what each gives on every target, and which radius is best there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..influence.tables import Table
from .labels import number
from .output import LONG, Grid
from .output import Cell as Words
from .runs import table_of
from .tabular import estimate
from .transfer_cells import MEASURED, PLAIN, Cell, Row, cell_of, entry_of, word_of
from .transfer_curves import Axis, Line
from .transfer_lines import arm_curves
from .transfer_tables import Sweep
from .transfer_views import View

LEAST = 3
"""Radii of a family from which on it is drawn: two are one difference, which the page has already."""
NORMS = {"l2": "L2", "linf": "L∞"}
RADIUS = "radius of the attack in the source's training, pixels from 0 to 1"
BEST = (
    "data", "resolution", "recipe", "k", "n", "measure", "family", "radii", "eps", "source", "mean", "low", "high", "seeds",
    "least_eps", "gain", "gain_low", "gain_high", "second_eps", "lead", "lead_low", "lead_high",
)  # fmt: skip

Families = Mapping[str, Mapping[float, str]]
"""Words of each family to its sources by radius."""


class Kind(NamedTuple):
    """What tells sources of one norm apart, beside the radius."""

    architecture: str
    fdm: str


def families(sweep: Sweep) -> dict[str, dict[float, str]]:
    """Sources that differ in the radius of their training alone.

    Args:
        sweep: The runs, and what is known of their sources.

    Returns:
        By the words for norm, architecture and feature distance, as far as these vary: sources by radius. A natural source
        belongs to every family of its architecture; a second source of one radius begins another family.
    """
    known = [source for source in sweep.sources if np.isfinite(real(sweep.fact(source, "eps")))]
    several = len({str(sweep.fact(source, "architecture")) for source in known}) > 1
    kinds = {source: _kind(sweep, source, several) for source in known}
    natural = [source for source in known if not sweep.fact(source, "norm")]
    found: dict[str, dict[float, str]] = {}
    for source in known:
        if source not in natural:
            norm = str(sweep.fact(source, "norm"))
            words = ", ".join(word for word in (NORMS.get(norm, norm), *kinds[source]) if word)
            radius = float(sweep.fact(source, "eps"))
            name = next(name for name in _names(words) if radius not in found.get(name, {}))
            found.setdefault(name, {})[radius] = source
    for members in found.values():
        kind = kinds[next(iter(members.values()))]
        for source in natural:
            if kinds[source].architecture == kind.architecture:
                members.setdefault(0.0, source)
    return {name: dict(sorted(members.items())) for name, members in found.items() if len(members) >= LEAST}


def by_radius(sweep: Sweep) -> View:
    """Accuracies against the radius of the source (Salman et al.; Utrera et al., Figure 10).

    Args:
        sweep: The runs.

    Returns:
        Lines: family, recipe and resolution; panels: measure, k and n; the best radius of each line has a ring.
    """
    held = families(sweep)
    rows = [row for measure in MEASURED for row in _rows(sweep, held, measure)]
    labels = {_line(row): _words(row, sweep, held) for row in rows}
    radii = sorted({row["eps"] for row in rows})
    axis = Axis(
        label=RADIUS,
        of=lambda row: float(row["eps"]),
        scale="zero" if 0.0 in radii else "log10",
        ticks=[(radius, radius_words(radius)) for radius in radii],
    )
    curves = arm_curves(
        sweep, rows, "Accuracies by the source's radius", axis, ["k", "n"], outer=["data"], line=_line, labels=labels
    )
    best: dict[tuple[Any, ...], Row] = {}
    for row in curves.rows:
        key = (curves.panel(row), curves.line(row))
        if key not in best or row["mean"] > best[key]["mean"]:
            best[key] = row
    curves = replace(curves, ringed=list(best.values()), ring_label="best of its line")
    caption = (
        "Accuracy against the radius that the source was trained with; 0 is the natural source. Radii of different norms are "
        f"not to be compared with each other; families of fewer than {LEAST} radii are left out."
    )
    return View(name="by-radius", heading="Radius of the source's training", curves=curves, caption=caption)


def best_radii(sweep: Sweep) -> Table:
    """Which radius is best for each target (Utrera et al., Table 5), and whether the seeds can tell.

    Args:
        sweep: The runs.

    Returns:
        A row for each line of `by_radius` and measure. `gain` is the paired difference from the least radius, `lead` that from
        the second best.
    """
    rows = [
        row
        for name, members in families(sweep).items()
        for measure in MEASURED
        for cells in _lines(sweep, members)
        if (row := _best(sweep, name, cells, measure)) is not None
    ]
    return table_of(rows, "Best radius of the source's training", BEST)


def best_grid(sweep: Sweep, table: Table, file: str) -> Grid:
    """The table as a part of the page.

    Args:
        sweep: The runs.
        table: From `best_radii`.
        file: CSV with the same numbers.

    Returns:
        The part; fields that do not vary are left out.
    """
    fields = [name for name in ("data", "resolution", "k", "n", "recipe") if name in sweep.varying]
    told = ["measure"] * (len({*table["measure"]}) > 1) + ["family"] * (len({*table["family"]}) > 1)
    body: list[list[Words]] = []
    for row in table.rows():
        cell = cell_of(row)
        words: list[Words] = [*(entry_of(name, getattr(cell, name)) for name in fields), *(row[name] for name in told)]
        best = [radius_words(row["eps"]), estimate({**row, "minus": ""})]
        body.append([*words, *best, _words_of(row, "gain"), radius_words(row["second_eps"]), _words_of(row, "lead")])
    return Grid(
        caption="The best radius of each target in percent; its gain over the least radius and its lead over the second best in "
        "points, paired by seed. It is picked by the runs that it is judged by, which flatters both",
        head=[*fields, *told, "best", "mean", "gain", "second", "lead"],
        body=body,
        file=file,
        folded=len(body) > LONG,
    )


def part(row: Row, name: str) -> Row:
    """A difference of the table as an estimate.

    Args:
        row: Row of `best_radii`.
        name: gain or lead.

    Returns:
        mean, low, high and minus.
    """
    return {"mean": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"], "minus": name}


def _words_of(row: Row, name: str) -> Words:
    return estimate(part(row, name) if np.isfinite(row[name]) else None)


def _best(sweep: Sweep, name: str, cells: Mapping[float, Cell], measure: str) -> Row | None:
    means = {radius: row for radius, cell in cells.items() if (row := sweep.mean(cell, measure)) is not None}
    if len(means) < LEAST:
        return None
    order = sorted(means, key=lambda radius: -means[radius]["mean"])
    best, second, least = order[0], order[1], min(means)
    row = {**means[best], "family": name, "radii": len(means), "eps": best, "least_eps": least, "second_eps": second}
    for what, other in (("gain", least), ("lead", second)):
        found = sweep.difference(cells[best], cells[other], measure) if other != best else None
        for part, column in (("mean", what), ("low", f"{what}_low"), ("high", f"{what}_high")):
            row[column] = found[part] if found else np.nan
    return {column: row[column] for column in BEST}


def _lines(sweep: Sweep, members: Mapping[float, str]) -> Iterator[dict[float, Cell]]:
    """Cells by radius, for everything else that a cell can be."""
    for rest in dict.fromkeys(cell._replace(source="") for cell in sweep.cells):
        cells = {radius: rest._replace(source=source) for radius, source in members.items()}
        if found := {radius: cell for radius, cell in cells.items() if cell in sweep.cells}:
            yield found


def _rows(sweep: Sweep, held: Families, measure: str) -> Iterator[Row]:
    for name, members in held.items():
        for cells in _lines(sweep, members):
            for radius, cell in cells.items():
                if (row := sweep.mean(cell, measure)) is not None:
                    yield {**row, "family": name, "eps": radius}


def _line(row: Row) -> Line:
    cell = cell_of(row)
    return row["family"], f"{cell.recipe or PLAIN}, {word_of('resolution', cell.resolution)}"


def _words(row: Row, sweep: Sweep, held: Families) -> str:
    rest = sweep.words(cell_of(row), ["recipe", "resolution"])
    return ", ".join(word for word in (row["family"] if len(held) > 1 or not rest else "", rest) if word)


def _kind(sweep: Sweep, source: str, several: bool) -> Kind:
    fdm = real(sweep.fact(source, "fdm"))
    distance = f"FDM {number(fdm)}" if np.isfinite(fdm) and fdm else ""
    return Kind(str(sweep.fact(source, "architecture")) if several else "", distance)


def radius_words(radius: float) -> str:
    """A radius as it is usually written.

    Args:
        radius: In pixels from 0 to 1.

    Returns:
        Half and whole steps of 8-bit pixels as such, up to 12/255; else the number.
    """
    steps = 255 * radius
    whole = round(2 * steps) / 2
    return f"{whole:g}/255" if 0 < whole <= 12 and abs(steps - whole) < 0.01 else number(radius)


def _names(words: str) -> Iterator[str]:
    yield words
    i = 2
    while True:
        yield f"{words} ({i})"
        i += 1


def real(value: Any) -> float:
    """A number of a source's record.

    Args:
        value: What it says; may be missing.

    Returns:
        The number, or NaN.
    """
    return float(value) if isinstance(value, int | float) else np.nan
