"""Methods that know how a network was trained, held against retraining: `python -m benchmarks.quality.training_run [--missing]`.

Part of `make bench-quality`; results go to benchmarks/training.json, and docs/benchmarks.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ..render import write
from ..run import HERE, child, machine
from .training import RECORDED
from .training_one import methods

RESULTS = HERE / "training.json"
LIMIT = 1200  # CPU seconds of one method


def results() -> dict[str, Any]:
    """What the file holds."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}


def run_all(*, missing: bool = False, limit: int = LIMIT, only: tuple[str, ...] = ()) -> None:
    """Every method on every recorded training, kept after each."""
    found = results() if missing or only else {"runs": []}
    for key, task in RECORDED.items():
        for name, (title, _) in methods(task).items():
            there = any((run["task"], run["method"]) == (key, name) for run in found["runs"])
            if (missing and there) or (only and name not in only):
                continue
            load = os.getloadavg()[0]
            run = {"task": key, "method": name, "title": title, "load": load}
            run |= child(["benchmarks.quality.training_one", name, key], limit, 1)
            print(f"  {key} {name}: {run}", flush=True)
            kept = [old for old in found["runs"] if (old["task"], old["method"]) != (key, name)]
            found = {"limit": limit, "machine": machine(), "runs": [*kept, run]}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", action="store_true", help="keep every result that is there")
    parser.add_argument("--methods", default="", help="only these, by their keys in training_one.py")
    words = parser.parse_args()
    run_all(missing=words.missing, only=tuple(words.methods.split(",")) if words.methods else ())
    write(HERE.parent / "docs")
