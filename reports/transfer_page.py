"""The report of a sweep: from its tidy tables to figures, tables, sentences and one page that holds them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..influence.tables import Table
from .output import LONG, Grid, Output, Part, Section, grid
from .progress import Report, Steps
from .runs import table_of
from .tabular import estimate_grid
from .transfer_accuracy import SourceAccuracy
from .transfer_cells import EMPTY, MEASURED, PLAIN, Cell, Row, entry_of, k_order
from .transfer_heads import by_hidden
from .transfer_recipes import Recipes
from .transfer_sources import best_grid, best_radii, by_radius
from .transfer_tables import Sweep
from .transfer_views import View, by_blocks, by_epoch, by_size, difference_by_size, few_data
from .transfer_words import conclude, seeds_words

SCHEMA, SCHEMA_VERSION = "upweight-transfer-stats", 1
VIEWS: tuple[Callable[[Sweep], View], ...] = (by_size, difference_by_size, by_blocks, by_radius, by_hidden, few_data)


def write_transfer_report(
    runs: Table,
    history: Table,
    sources: Table,
    out: Path,
    *,
    attack: str = "",
    title: str = "Transfer, by source and recipe",
    dpi: int = 150,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Write index.html, its figures (PNG), its tables (CSV) and stats.json.

    Args:
        runs: A row a run: run, source, recipe, data, resolution (NaN: as it is), n, k (text), seed, test_accuracy, seconds,
            hidden; robust_accuracy (NaN: not asked), classes and more where known.
        history: A row for each recorded epoch of every run: what says which run it is, epoch, test_accuracy.
        sources: A row a source: architecture, parameters, data, norm ("": natural), eps, fdm, natural_accuracy,
            robust_accuracy, attack.
        out: Folder; made when it is not there, files of the same names in it are replaced.
        attack: What robust accuracy was measured with, in words; "" when it was not.
        title: Heading of the page.
        dpi: Resolution of the figures, in dots per inch.
        progress: Told "report", pieces done, pieces in all.

    Returns:
        What stats.json holds.
    """
    sweep = Sweep(runs, history, sources, attack)
    output = Output(Path(out), dpi)
    step = Steps(progress, "report", len(VIEWS) + 4)
    sections = [_accuracies(sweep, output)]
    step()
    for make in VIEWS:
        sections += _sections([make(sweep)], output)
        step()
    sections += [*_best(sweep, output), *_recipes(Recipes(sweep), output)]
    step()
    sections += _source_accuracy(SourceAccuracy(sweep), output)
    step()
    sections += [*_sections(by_epoch(sweep), output), _source_facts(sweep, output)]
    step()
    conclusions = conclude(sweep)
    (output.folder / "history.csv").write_text(
        history.to_csv(), encoding="utf-8"
    )  # as long as all runs: not in stats.json too
    page = {
        "title": title,
        "facts": facts(sweep),
        "conclusions": [("", conclusions)],
        "sections": sections,
        "runs": _runs_grid(sweep, output.add("runs", runs)),
        "attack": attack,
        "version": __version__,
    }
    stats = _stats(sweep, output, conclusions, title)
    output.write_page("transfer.html", page, stats)
    return stats


def facts(sweep: Sweep) -> list[tuple[str, str]]:
    """What was run, in short.

    Args:
        sweep: The runs.

    Returns:
        Terms and what they are here.
    """
    images = sorted({int(n) for n in _finite(sweep, "robust_images")})
    attacked = f"{sweep.attack} on {_join(f'{n:,}' for n in images)} test images" if images else sweep.attack
    nets = _join(str(sweep.fact(source, "architecture")) for source in sweep.sources)
    found = [
        ("Sources", _join(sweep.sources)),
        ("Network", "" if nets == "nan" else nets),
        ("Target data", _join(sweep.values("data"))),
        ("Resolution", _join(sweep.words(c, ["resolution"]) for c in sweep.cells)),
        ("Recipes", _join(r or PLAIN for r in sweep.values("recipe")) if sweep.values("recipe") != [""] else ""),
        ("Fine-tuned blocks k", _join(sweep.values("k"))),
        ("Train images n", ", ".join(f"{n:,}" for n in sweep.values("n"))),
        ("Seeds a cell", seeds_words(sweep)),
        ("Runs", f"{len(sweep.runs):,} in {len(sweep.cells):,} cells"),
        ("Attack", attacked),
        ("Version", f"upweight {__version__}"),
    ]
    return [(term, text) for term, text in found if text]


def _accuracies(sweep: Sweep, output: Output) -> Section:
    """The main tables: every setting with its sources beside each other, and every cell by itself."""
    table = table_of(sweep.estimates(), "Every cell: mean over seeds with its 95% t interval, and differences", EMPTY)
    file = output.add("cells", table)
    fields = [name for name in ("data", "resolution", "k", "n", "recipe") if name in sweep.varying] or ["data"]
    rows = {
        tuple(str(_field(cell, name)) for name in fields): [entry_of(name, getattr(cell, name)) for name in fields]
        for cell in sweep.cells
    }
    main = estimate_grid(
        table,
        rows=rows,
        row_columns=fields,
        measures={measure: measure for measure in MEASURED if sweep.has(measure)},
        sources=sweep.sources,
        head=fields,
        file=file,
        caption=f"Accuracy on test images in percent, mean over the seeds of a cell ({seeds_words(sweep)}) with its 95% t "
        "interval (cut where shares end); differences in points, paired by seed",
    )
    shown = [*fields, "source", "minus", "measure", "mean", "low", "high", "seeds"]
    every = grid(table, {name: name for name in shown}, file, "Every cell, measure and difference", folded=True)
    return Section(anchor="accuracy", heading="Accuracy", parts=[replace(main, folded=len(main.body) > LONG), every])


def _field(cell: Cell, name: str) -> Any:
    value = getattr(cell, name)
    return np.nan if value is None else value


def _sections(views: Iterable[View], output: Output) -> list[Section]:
    """A section for each view that has something to show."""
    return [
        Section(anchor=view.name, heading=view.heading, parts=[_picture(view, output)]) for view in views if view.curves
    ]


def _picture(view: View, output: Output) -> Part:
    frame = view.curves.frame()
    file = output.add(view.table or view.name.replace("-", "_"), frame)
    drawn = [row for row in view.curves.rows if view.curves.drawn(row)]
    words = [view.caption, basis(drawn)]
    for name, title in (("k", "k"), ("n", "n"), ("source", "the sources")):
        held, known = (dict.fromkeys(row[name] for row in rows) for rows in (drawn, view.curves.rows))
        if len(held) < len(known):
            order = held if name == "source" else sorted(held, key=lambda value: k_order(str(value)))
            words.append(f"Drawn of {title}: {_join(entry_of(name, value) for value in order)}.")
    return output.picture(
        view.name, view.curves.plot(), alt=view.caption, caption=f"{' '.join(words)} All numbers: {file}."
    )


def basis(rows: Sequence[Row]) -> str:
    """Where the bars of a figure come from.

    Args:
        rows: What is drawn.

    Returns:
        A sentence.
    """
    counts = {row["seeds"] for row in rows}
    if counts == {1}:
        return "One seed: no intervals."
    least, most = min(counts), max(counts)
    over = f"{most}" if least == most else f"{least} to {most}"
    single = "; of one seed there is no bar" if least == 1 else ""
    return f"Means over {over} seeds with 95% t intervals{single}."


def _best(sweep: Sweep, output: Output) -> list[Section]:
    table = best_radii(sweep)
    if not len(table):
        return []
    part = best_grid(sweep, table, output.add("best_radius", table))
    return [Section(anchor="best-radius", heading="Best radius of each target", parts=[part])]


def _recipes(view: Recipes, output: Output) -> list[Section]:
    if not view:
        return []
    parts: list[Part] = [view.grid(output.add("recipes", view.frame()))]
    if view.compared:
        caption = (
            "Robust accuracy against accuracy, a mark for each arm, and k beside it where k varies; bars are 95% t "
            "intervals over seeds. Best: top right."
        )
        alt = "Robust accuracy against accuracy of every recipe and source"
        parts.append(output.picture("recipes", view.plot(), alt=alt, caption=caption))
    return [Section(anchor="recipes", heading="Recipes", parts=parts)]


def _source_accuracy(view: SourceAccuracy, output: Output) -> list[Section]:
    if not view:
        return []
    table, correlations = view.frame(), view.correlations()
    output.add("source_accuracy", table)
    caption = (
        "Transfer accuracy, mean over seeds with its 95% t interval, against what the sources are, at the greatest number of "
        "train images. Sources of one radius are joined."
    )
    alt = "Transfer accuracy of every source against its own accuracy and its number of parameters"
    fields = [name for name in ("data", "resolution", "k", "n", "recipe") if name in view.sweep.varying]
    names = (*fields, "quantity", "sources", "points", "pearson", "low", "high", "spearman")
    words = (
        "Correlation with transfer accuracy over sources; the interval is Fisher's, of 95%, from 4 sources on. Parameters by "
        "their logarithm"
    )
    file = output.add("correlations", correlations)
    parts: list[Part] = [
        output.picture("source-accuracy", view.plot(), alt=alt, caption=caption),
        grid(correlations, {name: name for name in names}, file, words, folded=len(correlations) > LONG),
    ]
    return [Section(anchor="source-accuracy", heading="Source against transfer", parts=parts)]


def _source_facts(sweep: Sweep, output: Output) -> Section:
    table = sweep.facts
    file = output.add("sources", table)
    caption = "What the files of the sources say of them; robust accuracy as their makers measured it"
    part = grid(table, {name: name.replace("_", " ") for name in table.columns}, file, caption)
    return Section(anchor="sources", heading="Sources", parts=[part])


def _runs_grid(sweep: Sweep, file: str) -> Grid:
    names = (
        "run",
        "source",
        "recipe",
        "data",
        "resolution",
        "k",
        "n",
        "seed",
        "epochs",
        "train_accuracy",
        "test_accuracy",
    )
    held = [*names, "robust_accuracy", "robust_images", "seconds"]
    head = {name: name.replace("_", " ") for name in held if name in sweep.runs.columns}
    return grid(sweep.runs, head, file, "Every run", folded=True)


def _stats(sweep: Sweep, output: Output, conclusions: Sequence[str], title: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "upweight": __version__,
        "settings": {"title": title, "dpi": output.dpi, "attack": sweep.attack},
        "sources": list(sweep.sources),
        "recipes": sweep.values("recipe"),
        "conclusions": list(conclusions),
        "figures": output.figures,
        "tables": output.write_tables(),
        "history": "history.csv",
    }


def _finite(sweep: Sweep, column: str) -> list[float]:
    values = sweep.runs[column].tolist() if column in sweep.runs.columns else []
    return [value for value in values if np.isfinite(value)]


def _join(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))
