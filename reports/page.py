"""The report: every figure and table of a comparison in one folder, and one page that holds them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from .accuracy import Accuracies
from .facts import headline, scores_table, warnings_of
from .labels import group_label
from .output import Grid, Output, Paragraph, Part, Section, grid
from .progress import Report, Steps
from .runs import Group, RunView, group_runs, order_sources
from .sections import STEPS, group_sections
from .settings import ReportSettings
from .tabular import estimate_grid

SCHEMA, SCHEMA_VERSION = "upweight-stats", 1
SIGN = (
    "score[t, i] = + g_t^T H^+ g_i; positive: train example i is helpful to query t, removing it raises the query's loss by "
    "about score / n"
)
UNIT = "nats per unit weight"


def write_report(
    runs: Sequence[RunView],
    out: Path,
    settings: ReportSettings | None = None,
    progress: Report | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write index.html, its figures (PNG), its tables (CSV) and stats.json.

    Args:
        runs: One or more runs; those that differ in source and seed alone are compared with each other.
        out: Folder; made when it is not there, files of the same names in it are replaced.
        settings: How the report is made; None: as it is by default.
        progress: Told "report", pieces done, pieces in all.
        inputs: A digest of every run by name, kept so that a report can be told from one of other runs.

    Returns:
        What stats.json holds; docs/stats.md says what each name means.

    Raises:
        UsageError: There is no run, two runs are the same or were asked different queries, or `out` is a file.
    """
    settings = settings or ReportSettings()
    groups = group_runs(runs, across_k=settings.across_k)
    output = Output(Path(out), settings.dpi)
    step = Steps(progress, "report", 1 + STEPS * len(groups))
    sections = [_accuracies(groups, output)]
    step()
    conclusions: dict[str, list[str]] = {}
    for group in groups:
        parts, conclusions[group.key] = group_sections(group, output, settings, step)
        sections.append(Section(anchor=group.key, heading=group_label(group, groups), sections=parts))
    table = scores_table(groups)
    file = output.add("scores", table)
    page = {
        "title": settings.title,
        "facts": headline(groups),
        "conclusions": [(group_label(g, groups), conclusions[g.key]) for g in groups if conclusions[g.key]],
        "sections": sections,
        "runs": _runs_grid(table, file),
        "warnings": warnings_of(groups),
        "settings": settings,
        "version": __version__,
    }
    stats = {**_stats(groups, conclusions, output, settings), "inputs": dict(inputs or {})}
    output.write_page("page.html", page, stats)
    return stats


def _accuracies(groups: Sequence[Group], output: Output) -> Section:
    view = Accuracies(groups)
    frame = view.frame()
    output.add("accuracy_runs", view.runs_frame())
    sources = order_sources(s for g in groups for s in g.sources)
    seeds = sorted({len(g.seeds) for g in groups})
    over = (
        f"{seeds[0]} seeds"
        if len(seeds) == 1 and seeds[0] > 1
        else "one seed"
        if seeds == [1]
        else "the seeds of each line"
    )
    basis = (
        "95% Wilson intervals over examples; differences with normal intervals over the examples both were asked"
        if seeds == [1]
        else "95% t intervals over seeds (cut where shares end); differences are paired by seed"
    )
    rows = {
        (*(str(value) for value in group.columns.values()), side): [group_label(group, groups), side]
        for group in groups
        for side in ("test", "train")
    }
    parts: list[Part] = [
        estimate_grid(
            frame,
            rows=rows,
            row_columns=["data", "k", "n", "set"],
            measures={"": ""},
            sources=sources,
            head=["fine-tuned", "set"],
            file=output.add("accuracy", frame),
            caption=f"Accuracy in percent, mean over {over}, with {basis}",
        ),
        output.picture(
            "accuracy",
            view.plot(),
            alt="Test and train accuracy of every run, by source and fine-tuned blocks",
            caption="A mark for each seed; bars are the intervals of the table, cut at 0 and 1.",
        ),
    ]
    if "t over seeds" in set(frame["basis"].tolist()) and max(seeds) < 5:
        parts.append(
            Paragraph(
                text=f"Intervals over {max(seeds)} seeds are Student's t (degrees of freedom: {max(seeds) - 1}): they are "
                "wide, and speak of other subsets and training runs, with the same test images and the same source models."
            )
        )
    return Section(anchor="accuracy", heading="Accuracy", parts=parts)


def _runs_grid(table: Any, file: str) -> Grid:
    names = ("run", "variant", "source", "k", "n", "seed", "m", "curvature", "query_label", "damping")
    head = {name: {"variant": "scores", "query_label": "query label"}.get(name, name) for name in names}
    return grid(table, head, file, "Every run and its scores", folded=True)


def _stats(
    groups: Sequence[Group], conclusions: Mapping[str, list[str]], output: Output, settings: ReportSettings
) -> dict[str, Any]:
    sources = order_sources(s for g in groups for s in g.sources)
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "upweight": __version__,
        "sign": SIGN,
        "unit": UNIT,
        "settings": asdict(settings),
        "sources": list(sources),
        "groups": [
            {
                "key": g.key,
                "data": g.data,
                "k": g.k,
                "n": g.n,
                "sources": list(g.sources),
                "seeds": list(g.seeds),
                "first_seed": g.first_seed,
                "runs": [run.name for run in g.runs],
                "conclusions": conclusions[g.key],
            }
            for g in groups
        ],
        "warnings": warnings_of(groups),
        "figures": output.figures,
        "tables": output.write_tables(),
    }
