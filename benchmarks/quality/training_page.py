"""The part of docs/benchmarks.md about scores that know the training, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import tables
from .tasks import TASKS
from .training import FEW, LEFT_OUT, RECORDED, SUBSETS, TRAININGS
from .training_one import MEAN
from .training_tuned import Tuned

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
_FEWER = {task.parts for task in RECORDED.values() if task.made and task.parts != SUBSETS}
LEGEND = f"""\
- *halves, other seeds*: the LDS of the tables above. {SUBSETS} random halves, two trainings each: other first weights, another
  order, and batches filled with what is kept, so that half the data means half the steps.
- *same training*: the first weights, every batch and the number its sum is divided by are those of the network itself, and what
  is left out weighs nothing in them. {SUBSETS} random halves; {SUBSETS} times all but {FEW:.0%} (of a fine-tuning
  {" or ".join(map(str, sorted(_FEWER)))} times); and {LEFT_OUT} examples one at a time. Published LDS near 1 for such methods
  (Ilyas and Engstrom 2025, arXiv:2504.16430) are of this kind, with few examples left out: they predict this one training.
- *LOO, batches filled up*: the same {LEFT_OUT} examples left out of a training with the network's seed and of one with another;
  later batches of an epoch move up by one example. LOO is Pearson / Spearman over all pairs, as above.
- *steps*: how many steps of the training are differentiated, from its end. *size*: root mean square of the scores, which are in
  nats per unit weight (GradientDot at the last weights has another unit).
- *picked*: the damping of half decades that is best on these ground truths; all else is not tuned.
- *mean of {TRAININGS} trainings*: `upweight.average` of the scores of as many trainings, the network's own and others with other
  seeds, each recorded. *CPU s* are those of all {TRAININGS} attributions; the trainings themselves are not counted.
- Leaving one out is shown of the short training alone: of the others two refits do not agree on what it did (notes above)."""


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
            parts += [
                f"## {task.title}",
                method_table(runs, shown(key)),
                " ".join([*SENTENCES[key](runs), *averaged(runs)]),
            ]
    return "\n\n".join(part for part in parts if part)


def shown(key: str) -> list[str]:
    """Questions of a table."""
    return [name for name in COLUMNS if name in RECORDED[key].questions]


def method_table(runs: Sequence[Run], questions: Sequence[str]) -> str:
    """One line a method, the highest LDS of the first question first; what failed last."""
    wrong = any("mislabel" in run for run in runs)
    head = ["method", "steps", *(COLUMNS[name].format(few=FEW) for name in questions), *(["mislabel"] if wrong else [])]
    done = sorted((run for run in runs if questions[0] in run), key=lambda run: -run[questions[0]]["lds"][0])
    rows = []
    for run in done:
        cells = [cell(run.get(name)) for name in questions]
        found = run.get("mislabel")
        cells += [f"{found[0]:.3f}, {found[3]:.0%}" if found else ""] if wrong else []
        cost = [f"{run['size']:.2g}", tables.number(run["cpu"]), gib(run)]
        rows.append([run["title"], f"{run['steps']} of {run['all_steps']}" if run["steps"] else "-", *cells, *cost])
    rows += [
        [run["title"], run.get("failed", "no result"), *[""] * (len(head) + 1)]
        for run in runs
        if questions[0] not in run
    ]
    return tables.table([*head, "size", "CPU s", "GiB"], rows)


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "lds" in found:
        return between(found["lds"])
    return f"{found['pearson']:.3f} / {found['spearman']:.3f}"


def gib(run: Run) -> str:
    return f"{run['bytes'] / 2**30:.2f}" if "bytes" in run else ""


def between(found: Sequence[float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


# ------------------------------------------------------------------------------------------------------------- sentences


def one(runs: Sequence[Run], method: str) -> Run | None:
    return next((run for run in runs if run["method"] == method and "size" in run), None)


def against(runs: Sequence[Run], question: str) -> str:
    """Unrolled through the whole training beside the best of the methods that are not unrolled."""
    ours = one(runs, "unrolled")
    others = [run for run in runs if not run["method"].startswith(("unrolled", MEAN)) and question in run]
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


def windows_of(runs: Sequence[Run]) -> list[Run]:
    """Parts of the training that were differentiated alone."""
    return [run for run in runs if run["method"].startswith("unrolled-") and "lds" in run]


def of_parts(runs: Sequence[Run]) -> list[str]:
    """The whole training beside its last parts, against trainings with other seeds."""
    whole, windows = one(runs, "unrolled"), windows_of(runs)
    assert whole is not None  # the callers have seen to it
    said = [
        f"Through the whole training Unrolled has an LDS of {against(runs, 'lds')}; the ceiling is {whole['lds']['ceiling']:.3f}."
    ]
    if windows:
        best = max(windows, key=lambda run: run["lds"]["lds"][0])
        longest = max(windows, key=lambda run: run["steps"])
        times = whole["size"] / longest["size"]
        said.append(
            f"Its scores are then {times:.0f} times as large as those of the last {longest['steps']} steps alone."
        )
        if times > 3:
            said.append(
                "A small change in the first steps sends the training elsewhere: the derivative through them is that of an "
                "infinitely small change, and says nothing about halves of the data with other seeds."
            )
        said.append(
            f"Of the windows the best has the last {best['steps']} steps, with an LDS of {best['lds']['lds'][0]:.3f}."
        )
    return said


def of_cost(runs: Sequence[Run], key: str) -> str:
    whole = one(runs, "unrolled")
    assert whole is not None  # as above
    return f"Unrolled through all steps took {whole['cpu'] / RECORDED[key].m:.1f} CPU seconds a query."


def of_long(runs: Sequence[Run]) -> list[str]:
    if one(runs, "unrolled") is None:
        return []
    return [
        *of_parts(runs),
        of_cost(runs, "digits-cnn"),
        "It is for questions about one given training of few steps; for a long training from random weights give `last`, or take "
        "an inverse curvature.",
    ]


def of_tuned(runs: Sequence[Run]) -> list[str]:
    whole = one(runs, "unrolled")
    if whole is None:
        return []
    key, said = whole["task"], of_parts(runs)
    made = RECORDED[key].by
    assert isinstance(made, Tuned)
    rate, epochs, length = made.first_rate()
    said.insert(
        0,
        f"The source's weights are good ones, but the head is new, and the first {epochs} of {length} epochs have a rate of "
        f"{rate:g}.",
    )
    if "same-few" in whole:
        best = max((run for run in runs if "same-few" in run), key=lambda run: run["same-few"]["lds"][0])
        said.append(
            f"Asked what this very training would have given without {FEW:.0%} of its examples: {against(runs, 'same-few')}."
        )
        if best["same-few"]["lds"][0] < 0.5:
            first = max(
                (run for run in runs if "gain" not in run and "lds" in run), key=lambda run: run["lds"]["lds"][0]
            )
            said.append(
                f"No method reaches more than {best['same-few']['lds'][0]:.3f} there: without {FEW:.0%} of its examples this "
                "training ends elsewhere, by no rule that a score follows. What half of the data does to several trainings can "
                f"be predicted ({first['title']}: {first['lds']['lds'][0]:.3f}). `Unrolled` is for trainings whose steps are "
                "small enough for a derivative."
            )
    return [*said, of_cost(runs, key)]


def of_gentle(runs: Sequence[Run]) -> list[str]:
    whole = one(runs, "unrolled")
    if whole is None:
        return []
    made = RECORDED[whole["task"]].by
    assert isinstance(made, Tuned)
    rate, epochs, length = made.first_rate()
    return [
        f"The first {epochs} of {length} epochs have a rate of {rate:g}; its test accuracy is {made.accuracy():.1%}, that of the "
        f"natural fine-tuning above {Tuned(task=TASKS['fashion-natural']).accuracy():.1%}.",
        f"What this very training would have given without {FEW:.0%} of its examples: Unrolled {against(runs, 'same-few')}; "
        f"without half of them: {against(runs, 'same-halves')}.",
        of_cost(runs, whole["task"]),
    ]


def averaged(runs: Sequence[Run]) -> list[str]:
    """What the mean over several trainings gains, the most first."""
    means = [run for run in runs if "gain" in run]
    if not means:
        return []

    def told(run: Run) -> str:
        alone = run["gain"]["alone"]
        return (
            f"{run['title'].partition(', mean of')[0]} {run['lds']['lds'][0]:.3f} ({sum(alone) / len(alone):.3f} on average of "
            f"one training, {over(run['gain'])} over the first"
            + (f"; unit rows {run['unit_rows']['lds']:.3f}, {over(run['unit_rows'])}" if "unit_rows" in run else "")
            + ")"
        )

    def over(found: dict[str, Any]) -> str:
        gain, low, high = found["over_first"]
        return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"

    means.sort(key=lambda run: -run["gain"]["over_first"][0])
    sure = sum(run["gain"]["over_first"][1] > 0 for run in means)
    word = "all of them gain" if sure == len(means) else f"{sure} of {len(means)} gain"
    units = [run["unit_rows"] for run in means if "unit_rows" in run]
    better = sum(found["over_first"][1] > 0 for found in units)
    more = [
        f"Where every query's scores are first divided by their root mean square (`average(..., unit_rows=True)`), so that the "
        f"training in which its loss is largest does not outvote the others, {better} of {len(units)} gain."
    ] * bool(units)
    return [
        f"LDS (halves, other seeds) of the mean over {TRAININGS} trainings, with a paired interval: "
        f"{'; '.join(told(run) for run in means)}. By the intervals {word}.",
        *more,
    ]


SENTENCES = {
    "short-mlp": of_short,
    "fashion-natural": of_tuned,
    "fashion-robust": of_tuned,
    "fashion-gentle": of_gentle,
    "digits-cnn": of_long,
}
