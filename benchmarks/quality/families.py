"""The same method in several tools: ours and theirs on the same networks, each at the best damping of its own sweep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import tables
from .methods import ENTRIES
from .tasks import TASKS

FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "EK-FAC": ("ekfac", ("kronfluence-ekfac", "pydvl-ekfac", "dattri-ekfac")),
    "EK-FAC, linear layers only": ("ekfac-linear", ("pydvl-ekfac-linear", "dattri-ekfac-linear")),
    "K-FAC": ("kfac", ("kronfluence-kfac",)),
    "Nystroem, rank 100": ("nystroem", ("pydvl-nystroem",)),
    "Lanczos, Arnoldi, rank 100": ("lanczos", ("pydvl-arnoldi", "captum-arnoldi", "dattri-arnoldi")),
    "conjugate gradients": ("cg", ("pydvl-cg", "dattri-cg")),
    "rows projected to 512": ("projected", ("trak", "dattri-trak")),
    "gradient products": ("dot", ("captum-tracin",)),
}
"""Our method and the other tools' versions of it, by their keys."""

Run = dict[str, Any]
INTRODUCTION = """\
Each at the damping of its own sweep that is best on this ground truth; a method without a sweep as it is called. *ours - it*: by
how much our version's LDS lies above theirs, on the same draws, with a 95% interval. CPU seconds are those of one call."""


def partners(task: str, runs: list[Run]) -> Iterator[tuple[str, Run, Run]]:
    """Family, our run and another tool's, for all that ran on a task."""
    by_key = {run["method"]: run for run in runs if run["task"] == task}
    for family, (ours, theirs) in FAMILIES.items():
        yield from ((family, by_key[ours], by_key[key]) for key in theirs if ours in by_key and key in by_key)


def line(run: Run) -> str | None:
    """Which of the lines of a run stands for it."""
    return next((name for name in ("best", "given") if name in run), None)


def add_leads(task: str, runs: list[Run], folder: Path) -> None:
    """Put the lead of our version's LDS over another tool's into the other's runs, where both scores lie in the folder."""
    from upweight.cache.truth import open_truth
    from upweight.influence.evaluation import lds_difference

    for _, ours, theirs in partners(task, runs):
        mine, its = line(ours), line(theirs)
        paths = [folder / task / f"{run['method']}.{name}.npy" for run, name in ((ours, mine), (theirs, its))]
        if mine and its and all(path.exists() for path in paths):
            truth = open_truth(TASKS[task].folder / "lds.h5")
            found = lds_difference(*(np.load(path) for path in paths), truth)
            theirs[its]["family"] = [found.mean, found.low, found.high]


def section(results: dict[str, Any]) -> list[str]:
    """The table and what it says, as Markdown; nothing where no two tools have the same method."""
    rows, behind, compared = [], [], 0
    for task in TASKS:
        for family, ours, theirs in partners(task, results["runs"]):
            mine, its = line(ours), line(theirs)
            if mine is None:
                continue
            tool = ENTRIES[theirs["method"]].tool
            cells = [task, family, f"{ours[mine]['lds'][0]:.3f}", tables.number(ours["cpu"]), tool]
            if its is None:
                rows.append([*cells, theirs.get("failed", "no result").replace("|", "/"), "", ""])
                continue
            lead = theirs[its].get("family")
            rows.append([*cells, f"{theirs[its]['lds'][0]:.3f}", _interval(lead), tables.number(theirs["cpu"])])
            compared += lead is not None
            if lead is not None and lead[2] < 0:
                behind.append(f"{family} of {tool} on {task} (by {-lead[0]:.3f})")
    if not rows:
        return []
    head = ["task", "method", "ours: LDS", "CPU s", "tool", "its LDS", "ours - it", "CPU s"]
    said = f"Of {compared} pairs ours is behind in {len(behind) or 'none'}, decided by the interval"
    return [INTRODUCTION, tables.table(head, rows), said + (": " + "; ".join(behind) + "." if behind else ".")]


def _interval(lead: list[float] | None) -> str:
    return "" if lead is None else f"{lead[0]:+.3f} [{lead[1]:+.3f}, {lead[2]:+.3f}]"
