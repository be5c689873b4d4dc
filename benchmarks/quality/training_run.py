"""Methods that know how a network was trained, held against retraining: `python -m benchmarks.quality.training_run [--missing]`.

Part of `make bench-quality`; results go to benchmarks/training.json, and docs/benchmarks.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from ..render import write
from ..run import HERE, child, machine
from .training import RECORDED
from .training_one import kept_at, methods, verdicts

RESULTS = HERE / "training.json"
LIMIT = 1200  # CPU seconds of one method


def results() -> dict[str, Any]:
    """What the file holds."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}


def run_all(
    *,
    missing: bool = False,
    limit: int = LIMIT,
    tasks: Collection[str] = tuple(RECORDED),
    only: Collection[str] = (),
) -> None:
    """Every method on every recorded training, kept after each."""
    whole = not (missing or only) and set(tasks) == set(RECORDED)
    found = {"runs": []} if whole else results()
    for key in tasks:
        for name, (title, _) in methods(RECORDED[key]).items():
            there = any((run["task"], run["method"]) == (key, name) for run in found["runs"])
            if (missing and there) or (only and name not in only):
                continue
            load = os.getloadavg()[0]
            run = {"task": key, "method": name, "title": title, "load": load}
            run |= child(["benchmarks.quality.training_one", name, key], limit, 1)
            print(f"  {key} {name}: {run}", flush=True)
            found = put(results() if found["runs"] else found, run, limit)


def put(found: dict[str, Any], run: dict[str, Any], limit: int) -> dict[str, Any]:
    """The results with a run in place of an older one, written."""
    kept = [old for old in found["runs"] if (old["task"], old["method"]) != (run["task"], run["method"])]
    found = {"limit": limit, "machine": machine(), "runs": [*kept, run]}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return found


def ask_again() -> None:
    """Every question put to the scores that were kept: what a new ground truth asks for."""
    found = results()
    for run in found["runs"]:
        task = RECORDED[run["task"]]
        path = kept_at(run["method"], task)
        if "size" in run and path.exists():
            run |= verdicts(np.load(path), task)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", action="store_true", help="keep every result that is there")
    parser.add_argument("--tasks", default=",".join(RECORDED), help="only these, by their keys in training.py")
    parser.add_argument("--methods", default="", help="only these, by their keys in training_one.py")
    parser.add_argument("--ask-again", action="store_true", help="run nothing; judge the scores that were kept")
    words = parser.parse_args()
    if words.ask_again:
        ask_again()
    else:
        only = tuple(words.methods.split(",")) if words.methods else ()
        run_all(missing=words.missing, tasks=words.tasks.split(","), only=only)
    write(HERE.parent / "docs")
