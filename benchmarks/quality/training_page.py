"""The part of docs/benchmarks.md about scores that know the training, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import tables
from .training import FEW, LEFT_OUT, RECORDED, SUBSETS

Run = dict[str, Any]
INTRODUCTION = """\
Written by `make bench-quality` from benchmarks/training.json. `Unrolled` differentiates every recorded step, `GradientDot.along`
(TracIn) sums dot products of gradients over them; all others know the finished weights alone. Columns as above, and:"""
COLUMNS = {
    "lds": "LDS: halves, other seeds",
    "same-halves": "LDS: halves, same training",
    "same-few": "LDS: {few:.0%} out, same training",
    "same-loo": "LOO, same training",
    "loo": "LOO, batches filled up",
}
LEGEND = f"""\
- *halves, other seeds*: the LDS of the tables above. {SUBSETS} random halves, two trainings each: other first weights, another
  order, and batches filled with what is kept, so that half the data means half the steps.
- *same training*: the first weights, every batch and the number its sum is divided by are those of the network itself, and what
  is left out weighs nothing in them. {SUBSETS} random halves; {SUBSETS} times all but {FEW:.0%}; and {LEFT_OUT} examples one at a
  time. Published LDS above 0.9 for such methods are of this kind, with few examples left out: they predict this one training.
- *LOO, batches filled up*: the same {LEFT_OUT} examples left out of a training with the network's seed and of one with another;
  later batches of an epoch move up by one example. LOO is Pearson / Spearman over all pairs, as above.
- *steps*: how many steps of the training are differentiated, from its end. *size*: root mean square of the scores, which are in
  nats per unit weight (GradientDot at the last weights has another unit).
- *picked*: the damping of half decades that is best on these ground truths; all else is not tuned.
- Leaving one out of the long training is not shown: two refits do not agree on what it did (notes above)."""


def part(results: dict[str, Any]) -> str:
    """The whole part as Markdown."""
    machine = results["machine"]
    parts = [
        "# The training itself",
        INTRODUCTION,
        LEGEND,
        f"{machine['processor']}, {machine['cores']} cores; every method in a process of its own with one thread.",
    ]
    for key, task in RECORDED.items():
        runs = [run for run in results["runs"] if run["task"] == key]
        if runs:
            parts += [f"## {task.title}", method_table(runs, shown(key)), " ".join(SENTENCES[key](runs))]
    return "\n\n".join(part for part in parts if part)


def shown(key: str) -> list[str]:
    """Questions of a table; leaving one out of the long training drowns in noise, as the notes below the main tables say."""
    return [name for name in COLUMNS if name in RECORDED[key].questions and (key == "short-mlp" or name != "loo")]


def method_table(runs: Sequence[Run], questions: Sequence[str]) -> str:
    """One line a method, the highest LDS of the halves first; what failed last."""
    wrong = any("mislabel" in run for run in runs)
    head = ["method", "steps", *(COLUMNS[name].format(few=FEW) for name in questions), *(["mislabel"] if wrong else [])]
    done = sorted((run for run in runs if "lds" in run), key=lambda run: -run["lds"]["lds"][0])
    rows = []
    for run in done:
        cells = [cell(run.get(name)) for name in questions]
        found = run.get("mislabel")
        cells += [f"{found[0]:.3f}, {found[3]:.0%}" if found else ""] if wrong else []
        cost = [f"{run['size']:.2g}", tables.number(run["cpu"]), f"{run['bytes'] / 2**30:.2f}"]
        rows.append([run["title"], f"{run['steps']} of {run['all_steps']}" if run["steps"] else "-", *cells, *cost])
    rows += [
        [run["title"], run.get("failed", "no result"), *[""] * (len(head) + 1)] for run in runs if "lds" not in run
    ]
    return tables.table([*head, "size", "CPU s", "GiB"], rows)


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "lds" in found:
        return between(found["lds"])
    return f"{found['pearson']:.3f} / {found['spearman']:.3f}"


def between(found: Sequence[float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


# ------------------------------------------------------------------------------------------------------------- sentences


def one(runs: Sequence[Run], method: str) -> Run | None:
    return next((run for run in runs if run["method"] == method and "lds" in run), None)


def against(runs: Sequence[Run], question: str) -> str:
    """Unrolled through the whole training beside the best of the methods that are not unrolled."""
    ours = one(runs, "unrolled")
    others = [run for run in runs if not run["method"].startswith("unrolled") and question in run]
    if ours is None or not others:
        return ""
    if "lds" in ours[question]:
        other = max(others, key=lambda run: run[question]["lds"][0])
        mine, its = ours[question]["lds"], other[question]["lds"]
        apart = mine[1] > its[2] or its[1] > mine[2]
        word = "ahead of" if mine[0] > its[0] else "behind"
        said = f"{mine[0]:.3f}, {word} {other['title']} with {its[0]:.3f}"
        return said if apart else f"{said} (the intervals overlap)"
    other = max(others, key=lambda run: run[question]["pearson"])
    mine, its = ours[question]["pearson"], other[question]["pearson"]
    return f"Pearson {mine:.3f}, {'ahead of' if mine > its else 'behind'} {other['title']} with {its:.3f}"


def of_short(runs: Sequence[Run]) -> list[str]:
    whole = one(runs, "unrolled")
    if whole is None:
        return []
    along = one(runs, "along")
    slope = f" (slope of the rise on the score {along['same-loo']['slope']:.2f})" if along else ""
    return [
        f"What this very training would have given without a few examples: Unrolled {against(runs, 'same-few')}; one example "
        f"left out, {against(runs, 'same-loo')}, the slope being {whole['same-loo']['slope']:.2f}.",
        f"Where batches are filled up and half of the trainings have another seed: {against(runs, 'loo')}.",
        "Half of the examples are no small change, and a derivative says less about it: "
        f"{against(runs, 'same-halves')}. With other seeds on top: {against(runs, 'lds')}; the ceiling is "
        f"{whole['lds']['ceiling']:.3f}. The sum of products along the way leaves out how later steps undo earlier ones: its "
        f"scores are too large{slope} and wrong for single examples, but their order holds for large parts of the data.",
    ]


def of_long(runs: Sequence[Run]) -> list[str]:
    whole = one(runs, "unrolled")
    if whole is None:
        return []
    said = [
        f"Through the whole training Unrolled has an LDS of {against(runs, 'lds')}; the ceiling is {whole['lds']['ceiling']:.3f}."
    ]
    windows = [run for run in runs if run["method"].startswith("unrolled-") and "lds" in run]
    if windows:
        best = max(windows, key=lambda run: run["lds"]["lds"][0])
        longest = max(windows, key=lambda run: run["steps"])
        said.append(
            f"Its scores are then {whole['size'] / longest['size']:.0f} times as large as those of the last {longest['steps']} "
            "steps alone: a small change in the first steps sends the training elsewhere. The derivative through them is that of "
            "an infinitely small change, and says nothing about halves of the data with other seeds. Of the windows the best has "
            f"the last {best['steps']} steps, with an LDS of {best['lds']['lds'][0]:.3f}."
        )
    queries = RECORDED["digits-cnn"].m
    said.append(
        f"Unrolled through all steps took {whole['cpu'] / queries:.1f} CPU seconds a query. It is for questions about one given "
        "training of few steps; for a long training from random weights give `last`, or take an inverse curvature."
    )
    return said


SENTENCES = {"short-mlp": of_short, "digits-cnn": of_long}
