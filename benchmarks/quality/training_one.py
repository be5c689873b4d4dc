"""One method on one recorded training, in a process of its own: `python -m benchmarks.quality.training_one METHOD TASK RESULT
MEMORY CPU`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..measure import PeakMemory
from ..methods import Ours
from ..one import limit_process
from .training import RECORDED, Recorded, record, wrong_labels


def methods(task: Recorded) -> dict[str, tuple[str, Callable[[Any, Any], Any]]]:
    """By key: a name, and what makes the curvature from the package and a recording."""
    found: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
        "unrolled": ("Unrolled", lambda upweight, recording: upweight.Unrolled(recording)),
        "along": ("GradientDot.along (TracIn)", lambda up, recording: up.GradientDot.along(recording, task.every)),
        "newton": ("GaussNewton, damping auto", lambda upweight, _: upweight.GaussNewton(damping="auto")),
        "ekfac": ("EKFAC, damping auto", lambda upweight, _: upweight.EKFAC(damping="auto")),
        "dot": ("GradientDot, last weights", lambda upweight, _: upweight.GradientDot()),
    }
    if task.picked is not None:
        found["newton-picked"] = (
            f"GaussNewton, damping {task.picked:g} picked",
            lambda upweight, _: upweight.GaussNewton(damping=task.picked),
        )
    for last in sorted(task.windows, reverse=True):
        found[f"unrolled-{last}"] = (
            f"Unrolled, last={last}",
            lambda upweight, recording, last=last: upweight.Unrolled(recording, last=last),
        )
    return found


def judge(scores: np.ndarray, task: Recorded, question: str) -> dict[str, Any]:
    """A method's scores held against one ground truth."""
    from upweight.influence.evaluation import lds
    from upweight.influence.removal import loo

    truth = task.truth(question)
    if question.endswith("loo"):
        alone = loo(scores, truth)
        return {"pearson": alone.pearson, "spearman": alone.spearman, "slope": alone.slope}
    found = lds(scores, truth)
    ceiling = float(found.ceiling) if truth.seed.shape[1] > 1 else None
    return {"lds": [found.mean, found.low, found.high], "ceiling": ceiling}


def attempt(key: str, task: Recorded, told: Callable[[dict[str, Any]], None]) -> None:
    """Cost, size of the scores, and every metric."""
    curvature = methods(task)[key][1]
    problem, recording = record(task)
    run = Ours(problem, lambda upweight, _: curvature(upweight, recording))
    memory, start, used = PeakMemory(), time.perf_counter(), time.process_time()
    scores = np.asarray(run(), dtype=np.float64)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
    found |= {"bytes": memory.growth(), "size": float(np.sqrt(np.mean(scores**2)))}
    found |= {"steps": steps_of(key, recording), "all_steps": len(recording.batches)}
    for question in task.questions:
        found[question] = judge(scores, task, question)
        told(found)
    if task.key == "short-mlp":
        found["mislabel"] = self_influence(task, curvature)
        told(found)


def steps_of(key: str, recording: Any) -> int | None:
    """Steps that are differentiated."""
    if not key.startswith("unrolled"):
        return None
    last = int(key.partition("-")[2] or recording.stretches)
    stretches = range(recording.stretches - last, recording.stretches)
    return sum(len(list(recording.steps(stretch))) for stretch in stretches)


def self_influence(task: Recorded, curvature: Callable[[Any, Any], Any]) -> list[float]:
    """How well scores of examples on themselves find wrong labels, on a network trained with a tenth of them."""
    from upweight.influence.evaluation import mislabel

    labels, flipped = wrong_labels()
    problem, recording = record(task, labels)
    scores = Ours(problem, lambda upweight, _: curvature(upweight, recording))()
    found = mislabel(np.diagonal(scores), flipped)
    return [found.auc, found.low, found.high, found.found_at_10]


def main(key: str, task: str, result: str, memory: str = "0", cpu: str = "0") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit_process(int(memory), int(cpu))
    attempt(key, RECORDED[task], lambda found: Path(result).write_text(json.dumps(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
