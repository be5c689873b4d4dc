"""The tidy tables of a sweep: runs, their histories, sources. The report's figures are views of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .models.settings import PGDSettings
from .sweep_plan import RunSpec, SourceSpec
from .sweep_work import Bench

if TYPE_CHECKING:
    from .influence.tables import Table

CELL = ("data", "resolution", "recipe", "source", "k", "n")
"""What runs of one cell have in common."""
SHARES = ("accuracy", "robust accuracy")
"""Measures of a cell that are shares of images."""


def sweep_tables(bench: Bench, runs: Sequence[RunSpec]) -> tuple[Table, Table, Table]:
    """What a sweep has found, as tidy tables.

    Args:
        bench: Of the sweep.
        runs: Those of its runs that are done.

    Returns:
        Runs, a row each; their histories, a row for every epoch that was measured; sources, a row each.
    """
    from .models.runs import read_run
    from .reports.runs import table_of

    told = [(run, read_run(bench.sweep.folder(run))) for run in runs]
    history = [row for run, info in told for row in _history_rows(run, info)]
    sources = dict.fromkeys(run.source for run in runs)
    itself = {one.source: bench.untouched_record(one) for one in bench.untouched(runs)}
    return (
        table_of([_run_row(bench, run, info) for run, info in told], "runs"),
        table_of(history, "accuracy by epoch"),
        table_of([_source_row(bench, source, itself.get(source)) for source in sources], "sources"),
    )


def _identity(run: RunSpec, info: Mapping[str, Any]) -> dict[str, Any]:
    resolution = run.data.resolution
    return {
        "run": run.name,
        "source": run.source.name,
        "recipe": run.recipe,
        "data": info["data"]["name"],
        "resolution": math.nan if resolution is None else float(resolution),
        "n": info["n"],
        "k": str(run.settings.k),
    }


def _run_row(bench: Bench, run: RunSpec, info: Mapping[str, Any]) -> dict[str, Any]:
    from .models.robustness import standing_record

    attack, settings, parts = bench.sweep.attack, run.settings, bench.parts(run)
    attacked = None if attack is None else standing_record(bench.sweep.folder(run), attack)
    return {
        **_identity(run, info),
        "classes": len(info["data"]["class_names"]),
        "trained_blocks": parts.blocks,
        "seed": settings.seed,
        "epochs": info["settings"]["epochs"],
        "train_accuracy": info["accuracy"]["train"],
        "test_accuracy": info["accuracy"]["test"],
        "robust_accuracy": math.nan if attacked is None else attacked["pgd"],
        "robust_images": math.nan if attacked is None else float(attacked["pgd_images"]),
        "seconds": info["seconds"],
        "trained_parameters": parts.parameters,
        "hidden": settings.hidden,
        "lwf": float(settings.lwf),
        "neft": math.nan if settings.neft is None else float(settings.neft),
        "adversarial": settings.adversarial,
    }


def _history_rows(run: RunSpec, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("epoch", "loss", "train_accuracy", "test_accuracy")
    measured = [entry for entry in info["history"] if "test_accuracy" in entry]
    return [
        {**_identity(run, info), "seed": run.settings.seed, **{name: entry[name] for name in names}}
        for entry in measured
    ]


def _source_row(bench: Bench, source: SourceSpec, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a source is, and how accurate: as measured in this sweep, or as its own record says."""
    network = bench.network(source)
    record = network.metadata
    made, held = record.get("settings", {}), measured or record.get("accuracy", {})
    natural = "adversarial" in made and not made["adversarial"]
    norm, eps = ("", 0.0) if natural else (made.get("norm", ""), made.get("eps", math.nan))
    return {
        "source": source.name,
        "architecture": network.spec.architecture,
        "parameters": sum(value.numel() for value in network.model.parameters()),
        "data": record.get("data", {}).get("name", ""),
        "norm": norm if source.norm is None else source.norm,
        "eps": float(eps if source.eps is None else source.eps),
        "fdm": float(made.get("fdm", 0.0)),
        "natural_accuracy": float(held.get("natural", record.get("nat_prec1", math.nan) / 100)),
        "robust_accuracy": float(held.get("pgd", math.nan)),
        "robust_images": float(held.get("pgd_images", math.nan)),
        "attack": _attack_words(held),
    }


def _attack_words(held: Mapping[str, Any]) -> str:
    """The attack of a record in a few words."""
    names = [field.name for field in fields(PGDSettings)]
    told = {name: held[f"pgd_{name}"] for name in names if f"pgd_{name}" in held}
    return PGDSettings(**told).label if told else ""


def summary(stats: Mapping[str, Any]) -> Table:
    """What a terminal shows of a sweep.

    Args:
        stats: What stats.json holds.

    Returns:
        A line for every cell, with its measures in percent; of what is the same in all of them nothing is said.
    """
    from .reports.runs import table_of

    columns = stats["tables"]["cells"]["columns"]
    told = [name for name in CELL if len(set(columns.get(name, ()))) > 1]
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if not row["minus"] and row["measure"] in SHARES:
            lines.setdefault(tuple(row[name] for name in CELL), {})[row["measure"]] = _percent(row)
    measures = dict.fromkeys(measure for found in lines.values() for measure in found)
    rows = [
        {name: _word(value) for name, value in zip(CELL, key, strict=True) if name in told}
        | {f"test {measure}": found.get(measure, "") for measure in measures}
        for key, found in lines.items()
    ]
    return table_of(rows, "Percent of test images, mean over seeds [95% interval]")


def _word(value: Any) -> str:
    return "as it is" if value is None else str(value) or "plain"


def _percent(row: Mapping[str, Any]) -> str:
    """A share in percent, with its interval as far as shares can go."""
    parts = (row[name] for name in ("mean", "low", "high"))
    mean, low, high = (None if part is None else f"{100 * min(max(part, 0.0), 1.0):.1f}" for part in parts)
    return f"{mean}" if low is None or high is None else f"{mean} [{low}, {high}]"
