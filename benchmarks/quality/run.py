"""All methods on all tasks: `python -m benchmarks.quality.run [--tasks digits-cnn] [--tools upweight,pyDVL] [--missing]`.

The trained networks and their ground truth ship in benchmarks/truth; `--rebuild-truth` makes them anew first. Results go to
benchmarks/quality.json after every run, and docs/benchmarks.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import cache
from typing import Any

import numpy as np

from ..render import write
from ..run import HERE, child, machine
from .families import add_leads
from .methods import ENTRIES
from .one import SCORES
from .rebuild import rebuild
from .tasks import TASKS, Task, read_facts

RESULTS = HERE / "quality.json"
REFERENCE = {"head": "head", "cnn": "newton-logits", "tail": "newton-logits", "mlp": "newton-margin"}
"""The method of ours, at the damping it is given, that every other is compared with."""


def compare(task: Task, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of a task with the leads of our LDS over theirs, on the same draws, where the scores lie in the cache."""
    from upweight.cache.truth import open_truth
    from upweight.influence.evaluation import lds_difference

    ours = SCORES / task.key / f"{REFERENCE[task.spec.kind]}.given.npy"
    runs = [run for run in runs if run["task"] == task.key]
    add_leads(task.key, runs, SCORES)
    if not ours.exists():
        return runs
    truth, first = open_truth(task.folder / "lds.h5"), np.load(ours)
    for run in runs:
        for name in ("given", "best"):
            path = SCORES / task.key / f"{run['method']}.{name}.npy"
            if name in run and path.exists() and path != ours:
                found = lds_difference(first, np.load(path), truth)
                run[name]["difference"] = [found.mean, found.low, found.high]
    return runs


@cache
def noise(key: str) -> dict[str, float]:
    """How well two trainings without an example agree on what it did: no score can be expected above the root of this."""
    from upweight.cache.truth import open_truth
    from upweight.influence.removal import loo

    task = TASKS[key]
    found = loo(
        np.zeros((task.spec.m, task.spec.n)), open_truth(task.folder / "loo.h5"), resamples=0
    ).repeat_correlation
    return {"loo_repeat": found} if np.isfinite(found) else {}


def chosen(task: Task, words: argparse.Namespace, done: list[dict[str, Any]]) -> list[str]:
    """Keys of the methods to run on a task."""
    keys = [key for key, entry in ENTRIES.items() if task.spec.kind in entry.kinds]
    if words.tools:
        keys = [key for key in keys if ENTRIES[key].tool in words.tools.split(",")]
    if words.methods:
        keys = [key for key in keys if key in words.methods.split(",")]
    if words.given:
        keys = [key for key in keys if ENTRIES[key].given is not None]
    if words.missing:
        there = {run["method"] for run in done if run["task"] == task.key}
        keys = [key for key in keys if key not in there]
    return keys


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", help=f"only these, separated by commas: {', '.join(TASKS)}")
    parser.add_argument("--tools", help="only these: upweight, baseline, pyDVL, dattri, captum, kronfluence, TRAK")
    parser.add_argument("--methods", help="only these, by their keys in benchmarks/quality/methods.py")
    parser.add_argument("--missing", action="store_true", help="keep every result that is there")
    parser.add_argument("--given", action="store_true", help="only at the damping that is not picked; sweeps stay")
    parser.add_argument("--limit", type=int, default=600, help="CPU seconds of one method on one task")
    parser.add_argument("--threads", type=int, default=1, help="of each method")
    parser.add_argument("--rebuild-truth", action="store_true", help="train and retrain everything first")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that retrain")
    return parser.parse_args()


def main() -> None:
    words = options()
    tasks = [TASKS[key] for key in words.tasks.split(",")] if words.tasks else list(TASKS.values())
    if words.rebuild_truth:
        for task in tasks:
            rebuild(task, workers=words.workers, anew=True)
    if not (words.tasks or words.tools or words.methods or words.missing or words.given):
        RESULTS.unlink(missing_ok=True)
    about = {"limit": words.limit, "threads": words.threads, "machine": machine()}
    for task in tasks:
        keys = chosen(task, words, results()["runs"])
        if keys:
            print(task.key, flush=True)
        for key in keys:
            command = ["benchmarks.quality.one", key, task.key, "given" if words.given else "all"]
            found = {"load": os.getloadavg()[0]} | child(command, words.limit, words.threads)
            print(f"  {key}: {found}", flush=True)
            record([before(task.key, key, words) | {"task": task.key, "method": key, **found}], about)
        record(compare(task, results()["runs"]), about)
    if not (words.tasks or words.tools or words.methods or words.given):
        train_aware(words)
    write(HERE.parent / "docs", quality=results())


def train_aware(words: argparse.Namespace) -> None:
    """The methods that know the training, on recorded trainings."""
    from .training import rebuild_all
    from .training_run import run_all

    if words.rebuild_truth:
        rebuild_all(workers=words.workers, anew=True)
    run_all(missing=words.missing)


def before(task: str, key: str, words: argparse.Namespace) -> dict[str, Any]:
    """What stays of an earlier run: its sweep, where only the given damping is run again."""
    found = [run for run in results()["runs"] if (run["task"], run["method"]) == (task, key)]
    return {name: run[name] for run in found for name in ("curve", "best", "stopped") if words.given and name in run}


def results() -> dict[str, Any]:
    """What the file holds."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}


def record(new: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Put runs into the file in place of older ones; read anew each time, as several calls may be at work on it."""
    found = results()
    again = {(run["task"], run["method"]) for run in new}
    runs = [run for run in found["runs"] if (run["task"], run["method"]) not in again] + new
    facts = {key: read_facts(task) | noise(key) for key, task in TASKS.items() if (task.folder / "facts.json").exists()}
    RESULTS.write_text(json.dumps({**about, "tasks": facts, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
