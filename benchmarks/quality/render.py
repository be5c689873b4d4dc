"""The part of docs/benchmarks.md about the scores' quality, and its figure, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import tables
from . import families
from .methods import ENTRIES
from .tasks import TASKS

NOTES = Path(__file__).parent / "notes.md"
FIGURE = "quality.png"
SHARES = (10, 30, 100, 300, 1000, 3000, 10000)  # by which the largest eigenvalue is divided, in the table of rules

Run = dict[str, Any]
INTRODUCTION = """\
Written by `make bench-quality` from benchmarks/quality.json. The trained networks and what retraining them gave ship in
benchmarks/truth, so that a clone can make the tables; `make bench-quality ARGS=--rebuild-truth` trains everything anew."""
LEGEND = """\
- *LDS*: linear datamodeling score: for each query the Spearman correlation, over random halves of the train set, of the summed
  scores of the kept examples with minus the query's loss after retraining on them; mean over queries, and a 95% interval from
  drawing halves and queries again. No method can be expected above the *ceiling*: retraining itself is noisy.
- *ours - it*: by how much the LDS of our method, at a damping that was not picked, lies above this line's, on the same draws,
  with a 95% interval; under each table it says which method that is.
- *damping*: a line that names `auto` or the weight decay was not tuned. Any other damping was **picked on this very ground
  truth**, in steps of half a decade: what the method can reach, and more than a user gets.
- *LOO*: Pearson and Spearman correlation of the scores with n times the rise of the loss when one example is left out, over all
  pairs of an example left out and a query. *LOO, two refits*: Pearson correlation of that rise between two trainings; scores
  cannot be expected above its root, and where it is small this truth decides nothing.
- *match*: share of queries whose highest-scored train example has their class, and the mean share among the five highest.
- *mislabel*: on a network trained with a tenth of the labels wrong, the area under the ROC curve of finding these by
  self-influence, with a 95% interval, and the share of them among the tenth of the examples that has most.
- *CPU s*, *GiB*: seconds of one core from model and data to all scores, and the growth of the resident memory at its peak."""


def part(results: dict[str, Any], *, figure: bool) -> str:
    """The whole part as Markdown."""
    machine = results["machine"]
    parts = [
        "# Quality: scores against retraining",
        INTRODUCTION,
        f"{machine['processor']}, {machine['cores']} cores; every method in a process of its own with {results['threads']} "
        f"thread(s), ended after {results['limit']} CPU seconds for all of its dampings and metrics.",
        task_table(results),
        LEGEND,
    ]
    for key, facts in results["tasks"].items():
        runs = [run for run in results["runs"] if run["task"] == key]
        if runs:
            parts += [f"## {facts['title']}", method_table(runs), " ".join(sentences(runs))]
    if found := families.section(results):
        parts += ["## The same method in several tools", *found]
    parts += ["## Damping", *damping(results, figure=figure)]
    if NOTES.exists():
        parts.append(NOTES.read_text().strip())
    return "\n\n".join(part for part in parts if part)


def task_table(results: dict[str, Any]) -> str:
    """What the tasks are, and what their ground truth took."""
    head = [
        "task",
        "p",
        "n",
        "queries",
        "accuracy, queries",
        "halves",
        "left out",
        "LDS ceiling",
        "LOO, two refits",
        "largest eigenvalue",
        "rebuilt in",
    ]
    rows = []
    for key, facts in results["tasks"].items():
        task = TASKS[key]
        ceilings = [
            run[name]["ceiling"] for run in results["runs"] for name in LINES if run["task"] == key and name in run
        ]
        rows.append([
            facts["title"],
            f"{facts['p']:,}",
            f"{facts['n']:,}",
            f"{facts['m']:,}",
            f"{facts['accuracy']['queries']:.1%}",
            f"{task.subsets} x {task.repeats}",
            f"{task.left_out} x {task.seeds}",
            "1, exact" if task.recipe is None and task.source is None else f"{ceilings[0]:.3f}" if ceilings else "",
            f"{facts['loo_repeat']:.2f}" if "loo_repeat" in facts else "exact",
            f"{facts['lambda_max']:.3g}",
            f"{rebuilding(facts) / 60:.1f} min",
        ])
    hours = sum(rebuilding(facts) for facts in results["tasks"].values()) / 3600
    return tables.table(head, rows) + f"\n\nAll of it was made in {hours:.2f} hours on one core of this machine."


def rebuilding(facts: dict[str, Any]) -> float:
    """Seconds that the networks and their ground truth took."""
    return sum(seconds for step, seconds in facts["seconds"].items() if step != "facts")


LINES = ("given", "best")


def method_table(runs: Sequence[Run]) -> str:
    """One line for each method and damping, the highest LDS first; what failed last."""
    head = ["tool", "method", "damping", "LDS", "ours - it", "LOO", "match 1, 5", "mislabel", "CPU s", "GiB"]
    lines = [(run[name]["lds"][0], line(run, name)) for run in runs for name in LINES if name in run]
    rows = [row for _, row in sorted(lines, key=lambda found: -found[0])]
    rows += [failure(run) for run in runs if not any(name in run for name in LINES)]
    return tables.table(head, rows)


def line(run: Run, name: str) -> list[str]:
    entry, found = ENTRIES[run["method"]], run[name]
    wrong = found.get("mislabel")
    return [
        entry.tool,
        entry.name,
        setting(run, name),
        between(*found["lds"]),
        between(*found["difference"], sign=True) if "difference" in found else "",
        " / ".join(f"{value:.3f}" for value in found["loo"]),
        " / ".join(f"{value:.2f}" for value in found["match"]),
        f"{between(*wrong[:3])}, {wrong[3]:.0%}" if wrong else "",
        tables.number(run["cpu"]),
        f"{run['bytes'] / 2**30:.2f}",
    ]


def failure(run: Run) -> list[str]:
    entry = ENTRIES[run["method"]]
    return [entry.tool, entry.name, "", run.get("failed", "no result").replace("|", "/"), *[""] * 6]


def setting(run: Run, name: str) -> str:
    found, entry = run[name], ENTRIES[run["method"]]
    if name == "best":
        return f"{found['setting']:.2g} picked" if entry.knob == "damping" else f"cutoff {found['setting']:g} picked"
    if entry.given is None:
        return "-"
    return entry.given if found.get("value") is None else f"{entry.given} = {found['value']:.2g}"


def between(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """A number with its interval."""
    form = "+.3f" if sign else ".3f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


# ------------------------------------------------------------------------------------------------------------- sentences


def sentences(runs: Sequence[Run]) -> list[str]:
    """Who leads, and whether that is decided."""
    from .run import REFERENCE

    kind = TASKS[runs[0]["task"]].spec.kind
    ours = next((run for run in runs if run["method"] == REFERENCE[kind] and "given" in run), None)
    if ours is None:
        return []
    said = [
        f"Our {ENTRIES[ours['method']].name} at {setting(ours, 'given')} reaches an LDS of {between(*ours['given']['lds'])}"
        + (f", at its own best damping {ours['best']['lds'][0]:.3f}." if "best" in ours else ".")
    ]
    peers = [run for run in runs if ENTRIES[run["method"]].tool not in ("upweight", "baseline") and "best" in run]
    inverse = [run for run in peers if ENTRIES[run["method"]].inverse and "difference" in run["best"]]
    if inverse:
        best = max(inverse, key=lambda run: run["best"]["lds"][0])
        said.append(
            f"The highest of the other tools that invert a curvature, each at its own best damping, is {called(best)} with "
            f"{best['best']['lds'][0]:.3f}: {verdict(best['best']['difference'])}."
        )
    own = [(run, name) for run in runs for name in LINES if name in run and ENTRIES[run["method"]].tool == "upweight"]
    ahead = [(run, name) for run, name in own if "difference" in run[name] and run[name]["difference"][2] < 0]
    if ahead:
        words = "; ".join(
            f"{ENTRIES[run['method']].name}, damping {setting(run, name)} ({run[name]['lds'][0]:.3f})"
            for run, name in ahead
        )
        said.append(f"Lines of ours that are ahead of it, decided by the paired interval: {words}.")
    return said


def called(run: Run) -> str:
    entry = ENTRIES[run["method"]]
    return f"{entry.tool}'s {entry.name}"


def verdict(difference: Sequence[float]) -> str:
    """A paired interval in words."""
    mean, low, high = difference
    if low > 0:
        return f"ours leads by {between(mean, low, high)}"
    if high < 0:
        return f"ours is behind by {between(-mean, -high, -low)}"
    return f"not decided, ours minus it is {between(mean, low, high, sign=True)}"


# --------------------------------------------------------------------------------------------------------------- damping


def damping(results: dict[str, Any], *, figure: bool) -> list[str]:
    """The curves of ours, and what other rules would give."""
    rows = []
    for key, name, run in curves(results):
        found = at_shares(results, run)
        peak = max(found.values())
        given = run["given"]
        cells = [f"{found[share]:.3f}" if share in found else "" for share in SHARES]
        rows.append([key, name, *cells, f"{peak:.3f}", f"{given['lds'][0]:.3f}"])
    head = ["task", "method", *(f"/ {share:,}" for share in SHARES), "highest", "as given"]
    said = [
        "LDS of ours at shares of the largest eigenvalue that the first table names; *as given* is the damping that was not "
        "picked: `auto`, and on the convex head the L2 penalty of the objective for LinearHead.",
    ]
    if figure:
        said.append(f"![LDS against damping]({FIGURE})")
    return [*said, tables.table(head, rows), regrets(results)] if rows else []


def regrets(results: dict[str, Any]) -> str:
    """What each share would cost at worst on the networks, with the rows that are compared with the other tools."""
    from .run import REFERENCE

    lost: dict[int, list[float]] = {}
    for key, _, run in curves(results):
        kind = TASKS[key].spec.kind
        if kind != "head" and run["method"] == REFERENCE[kind]:
            values = at_shares(results, run)
            for share in SHARES:
                lost.setdefault(share, []).append(max(values.values()) - values[share] if share in values else 1.0)
    if not lost:
        return ""
    said = ", ".join(f"{max(found):.3f} at / {share:,}" for share, found in lost.items() if max(found) < 1)
    return f"The most that one share for all networks loses against the highest of the curve (the rows compared above): {said}."


def at_shares(results: dict[str, Any], run: Run) -> dict[int, float]:
    """LDS by what the largest eigenvalue is divided by."""
    return {round(results["tasks"][run["task"]]["lambda_max"] / at): value for at, value in run["curve"]}


def curves(results: dict[str, Any]) -> list[tuple[str, str, Run]]:
    """Swept methods of ours with a rule, by task and rows."""
    found = []
    for key in results["tasks"]:
        for run in results["runs"]:
            entry = ENTRIES[run["method"]]
            if run["task"] == key and entry.tool == "upweight" and "curve" in run and "given" in run:
                found.append((key, entry.name, run))
    return found


DRAWN = ("head", "newton-logits", "newton-margin", "ekfac", "kronfluence-ekfac", "pydvl-nystroem")


def draw(results: dict[str, Any], path: Path) -> bool:
    """LDS against the damping over the largest eigenvalue, stars where our rules fall; two other tools dashed."""
    from matplotlib.figure import Figure

    found = {(run["task"], run["method"]): run for run in results["runs"] if "curve" in run}
    keys = [key for key in results["tasks"] if any((key, method) in found for method in DRAWN)]
    if not keys:
        return False
    figure = Figure(figsize=(3 * len(keys), 3.4), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        facts = results["tasks"][key]
        for i, method in enumerate(DRAWN):
            if (key, method) in found:
                run, entry = found[key, method], ENTRIES[method]
                x, y = zip(*run["curve"], strict=True)
                look = {"color": f"C{i}", "ls": "-" if entry.tool == "upweight" else "--", "ms": 3, "lw": 1}
                name = entry.name if entry.tool == "upweight" else called(run)
                (handles[name],) = axes.semilogx([at / facts["lambda_max"] for at in x], y, marker="o", **look)
                if "given" in run:
                    at = run["given"]["value"] or facts["weight_decay"]
                    axes.plot(at / facts["lambda_max"], run["given"]["lds"][0], "*", ms=11, color=f"C{i}")
        axes.set(title=key, xlabel="damping / largest eigenvalue", ylim=(0, None))
    figure.axes[0].set_ylabel("LDS")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=110)
    return True
