"""docs/benchmarks.md and its figure, from the results alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .methods import METHODS
from .tables import number, table

NOTES = Path(__file__).parent / "notes.md"
TITLES = {
    "head": "Linear head, F = {F}: {p:,} parameters, {n:,} examples, {m:,} queries, {C} classes, damping {damping:g}",
    "cnn": "All {p:,} parameters of a small CNN: {n:,} digits, {m:,} queries, {C} classes, damping {damping:g}",
    "resnet": "ResNet-18, last {blocks} block(s) and head: {p:,} parameters, {n:,} examples, {m:,} queries, damping {damping:g}",
}

Run = dict[str, Any]


def write(folder: Path, speed: dict[str, Any] | None = None, quality: dict[str, Any] | None = None) -> None:
    """The page and its figures, of the results that are given or lie in the files."""
    from .quality import render as of_quality
    from .quality import training_page as of_training

    speed, quality, training = speed or read("results.json"), quality or read("quality.json"), read("training.json")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    if speed:
        series = group(run for run in speed["runs"] if run["series"] != "compared")
        parts.append(page(speed, figure=draw(series, folder / "benchmarks.png")))
    if quality:
        parts.append(of_quality.part(quality, figure=of_quality.draw(quality, folder / of_quality.FIGURE)) + "\n")
    if training:
        parts.append(of_training.part(training) + "\n")
    (folder / "benchmarks.md").write_text("\n".join(parts))


def read(name: str) -> dict[str, Any] | None:
    path = Path(__file__).parent / name
    return json.loads(path.read_text()) if path.exists() else None


def page(results: dict[str, Any], *, figure: bool) -> str:
    """The whole page as Markdown."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    parts = [
        "# Benchmarks",
        "Written by `make bench` (`SIZES=full` for the largest problems) from its own output, benchmarks/results.json.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['gib']} GiB; Python {machine['python']}, {versions}. "
        f"Every method ran in a process of its own with {results['threads']} thread(s), one at a time. {busy(results)}"
        f"A run was ended after {2 * results['limit']} CPU seconds.",
        LEGEND,
    ]
    compared = [run for run in results["runs"] if run["series"] == "compared"]
    for runs in by_problem(compared):
        parts += [f"## {title(runs[0])}", comparison(runs)]
        stages = stage_table(runs)
        if stages:
            parts += ["Where the time of ours goes:", stages]
    parts += ["## Targets", targets(compared)]
    series = group(run for run in results["runs"] if run["series"] != "compared")
    if series:
        parts.append("## Scaling")
        if figure:
            parts.append("![Time against size](benchmarks.png)")
        parts += [f"{name}:\n\n{scaling(runs)}" for name, runs in series.items()]
    if NOTES.exists():
        parts.append(NOTES.read_text().strip())
    return "\n\n".join(parts) + "\n"


def busy(results: dict[str, Any]) -> str:
    """What else the machine did, as far as its load average tells."""
    loads = [run["load"] for run in results["runs"] if "load" in run]
    if not loads or statistics.median(loads) < 0.5:
        return ""
    return (
        f"The machine was shared with other work (median load when a run started: {statistics.median(loads):.1f}): clock times "
        "vary with it; CPU seconds, and their ratio to the matrix product timed in the same process, vary less. "
    )


LEGEND = """\
- *s*: seconds of the clock from model and data to all scores; median of three calls when a call is short.
- *CPU s*: the same in seconds of all threads together.
- *GiB*: growth of the resident memory at its peak, over what imports, model and data hold.
- *error*: largest error over the largest score, against float64 references computed densely and apart from the package
  (benchmarks/reference.py). A dash: the method's scores have another scale, or are not finite.
- *Spearman*: rank correlation with the reference over the train examples, mean over queries.
- *x GEMM*, of the clock and of CPU seconds: time over what the counted operations of the exact method (closed-form head; dual
  Gauss-Newton) take at the rate of a square matrix product of the same precision, timed in the same process before and after."""


def comparison(runs: Sequence[Run]) -> str:
    """One line a method, exact ones first, each part by time."""
    ordered = sorted(runs, key=lambda run: (not METHODS[run["method"]].exact, run.get("seconds", 1e9)))
    head = ["tool", "method", "type", "exact", "s", "CPU s", "GiB", "error", "Spearman", "x GEMM", "CPU x GEMM"]
    return table(head, [line(run) for run in ordered])


def line(run: Run) -> list[str]:
    method = METHODS[run["method"]]
    start = [method.tool, method.name, method.dtype, "yes" if method.exact else "no"]
    if "failed" in run:
        return [*start, run["failed"].replace("|", "/"), *[""] * 6]
    return [
        *start,
        number(run["seconds"]),
        number(run["cpu"]),
        f"{run['bytes'] / 2**30:.2f}",
        "-" if run.get("error") is None else f"{run['error']:.0e}",
        "-" if run.get("spearman") is None else f"{run['spearman']:.4f}",
        ratio(run),
        ratio(run, cpu=True),
    ]


def ratio(run: Run, *, cpu: bool = False) -> str:
    found = times_limit(run, cpu=cpu)
    return "" if found is None else f"{found:.1f}"


def times_limit(run: Run, *, cpu: bool = False) -> float | None:
    """Time over the counted operations at the rate of a matrix product."""
    if not run.get("operations") or "seconds" not in run:
        return None
    return run["cpu" if cpu else "seconds"] / run["operations"] * run["gemm_cpu" if cpu else "gemm"]


def stage_table(runs: Sequence[Run]) -> str:
    rows = [
        [
            f"{METHODS[run['method']].name} {METHODS[run['method']].dtype}",
            "; ".join(f"{k} {number(v)} s" for k, v in stages.items()),
        ]
        for run in runs
        if (stages := run.get("stages")) and METHODS[run["method"]].exact
    ]
    return table(["method", "stages"], rows) if rows else ""


def scaling(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        sizes = [f"{run['problem']['n']:,}", f"{run['p']:,}", str(run["problem"]["F"] or ""), str(run["problem"]["C"])]
        if "failed" in run:
            rows.append([*sizes, run["failed"], *[""] * 4])
        else:
            gib = f"{run['bytes'] / 2**30:.2f}"
            rows.append([*sizes, number(run["seconds"]), number(run["cpu"]), gib, ratio(run), ratio(run, cpu=True)])
    return table(["n", "p", "F", "C", "s", "CPU s", "GiB", "x GEMM", "CPU x GEMM"], rows)


def targets(runs: Sequence[Run]) -> str:
    """What was aimed at, and what came out of this run."""
    found = {(run["problem"]["kind"], run["problem"]["F"], run["method"]): run for run in runs}
    rows = []
    for F in (784, 2048):
        for key in ("head32", "head64"):
            run = found.get(("head", F, key))
            if run and "seconds" in run:
                both = f"{ratio(run)} (CPU {ratio(run, cpu=True)})"
                rows.append([
                    f"head, F = {F}, {METHODS[key].dtype}: x GEMM",
                    "at most 1.4",
                    both,
                    met(times_limit(run, cpu=True) <= 1.4),
                ])
        for ours, theirs in (("head32", "pydvl-direct32"), ("head64", "pydvl-direct64")):
            a, b = found.get(("head", F, ours)), found.get(("head", F, theirs))
            if a and b and "seconds" in a and "seconds" in b:
                what = f"head, F = {F}, {METHODS[ours].dtype}: against pyDVL Direct"
                faster, leaner = b["seconds"] / a["seconds"], b["bytes"] / a["bytes"]
                rows.append([
                    what,
                    "7 to 12 times faster",
                    f"{faster:.1f} (CPU {b['cpu'] / a['cpu']:.1f})",
                    met(b["cpu"] / a["cpu"] >= 7),
                ])
                rows.append([what, "5 times leaner", f"{leaner:.1f}", met(leaner >= 5)])
        run = found.get(("head", F, "head64"))
        if run and run.get("error") is not None:
            rows.append([
                f"head, F = {F}, float64: error",
                "under 1e-12",
                f"{run['error']:.0e}",
                met(run["error"] < 1e-12),
            ])
    for key in ("newton32", "newton64"):
        run = found.get(("cnn", 0, key))
        if run and "seconds" in run:
            rows.append([
                f"CNN, {METHODS[key].dtype}: seconds",
                "under 15",
                f"{number(run['seconds'])} (CPU {number(run['cpu'])})",
                met(run["seconds"] < 15),
            ])
            gram = run.get("stages", {}).get("gram")
            if gram is not None:
                rows.append([
                    f"CNN, {METHODS[key].dtype}: rows and Gram, s",
                    "under 5",
                    number(gram),
                    met(gram < 5),
                ])
    return table(["what", "target", "measured", "met"], rows)


def met(yes: bool) -> str:
    return "yes" if yes else "no"


def title(run: Run) -> str:
    return TITLES[run["problem"]["kind"]].format(p=run["p"], **run["problem"])


def by_problem(runs: Iterable[Run]) -> list[list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (("head", "cnn", "resnet").index(run["problem"]["kind"]), run["p"])):
        found.setdefault(title(run), []).append(run)
    return list(found.values())


def group(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run["series"], []).append(run)
    return {
        name: sorted(group, key=lambda run: (run["problem"]["n"], run["problem"]["C"], run["p"]))
        for name, group in found.items()
    }


AXES = {
    "n": lambda run: run["problem"]["n"],
    "F": lambda run: run["problem"]["F"],
    "C": lambda run: run["problem"]["C"],
}


def draw(series: dict[str, list[Run]], path: Path) -> bool:
    """Time against the axis that each series changes, with the matrix-product limit."""
    if not series:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(3.2 * len(series), 3), layout="constrained")
    for axes, (name, runs) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        runs = [run for run in runs if "seconds" in run]
        letter = name.rsplit(" ", 1)[-1]
        x = [AXES[letter](run) if letter in AXES else run["p"] for run in runs]
        axes.loglog(x, [run["seconds"] for run in runs], "o-", label="measured")
        axes.loglog(x, [run["operations"] / run["gemm"] for run in runs], "k--", lw=1, label="at GEMM rate")
        axes.set(title=name, xlabel=letter, ylabel="seconds")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
    return True


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "docs")
