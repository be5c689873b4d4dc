"""One method on one recorded training, in a process of its own: `python -m benchmarks.quality.training_one METHOD TASK RESULT
MEMORY CPU`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..measure import PeakMemory
from ..one import limit_process
from ..problems import Problem
from .one import SCORES
from .tasks import TRUTH
from .training import RECORDED, TRAININGS, Own, Recorded, record, wrong_labels

Curvature = Callable[[Any, Any], Any]
"""What makes a curvature from the package and a recording."""
MEAN = "mean-"


def methods(task: Recorded) -> dict[str, tuple[str, Curvature]]:
    """By key: a name, and what makes the curvature."""
    found: dict[str, tuple[str, Curvature]] = {
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
    return found | {
        f"{MEAN}{key}": (f"{found[key][0]}, mean of {TRAININGS} trainings", found[key][1]) for key in task.means
    }


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


def kept_at(key: str, task: Recorded) -> Path:
    """Where scores stay, for questions that are asked later."""
    return SCORES / task.key / f"recorded-{key}.npy"


def keep(scores: np.ndarray, key: str, task: Recorded) -> None:
    """Write them there."""
    path = kept_at(key, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, scores)


def verdicts(scores: np.ndarray, task: Recorded) -> dict[str, Any]:
    """Every question that has a ground truth by now."""
    there = [question for question in task.questions if (TRUTH / task.key / f"{question}.h5").exists()]
    return {question: judge(scores, task, question) for question in there}


def attempt(key: str, task: Recorded, told: Callable[[dict[str, Any]], None]) -> None:
    """Cost, size of the scores, and every metric."""
    curvature = methods(task)[key][1]
    trainings = [record(task, seed) for seed in (task.seeds if key.startswith(MEAN) else task.seeds[:1])]
    import_module("upweight.influence.attribute")  # loaded on first use otherwise
    memory, start, used = PeakMemory(), time.perf_counter(), time.process_time()
    every = [scores_of(*training, curvature) for training in trainings]
    scores = mean_of(every)
    keep(scores, key, task)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
    found |= {"bytes": memory.growth(), "size": float(np.sqrt(np.mean(scores**2)))}
    recording = trainings[0][1]
    found |= {"steps": steps_of(key.removeprefix(MEAN), recording), "all_steps": steps_in(recording, 0)}
    told(found := found | verdicts(scores, task))
    if len(every) > 1:
        found["gain"] = gain(scores, every, task)
        found["unit_rows"] = gain(mean_of(every, unit_rows=True), every, task)
        told(found)
    elif task.mislabelled:
        found["mislabel"] = self_influence(task, curvature)
        told(found)


def scores_of(problem: Problem, recording: Any, curvature: Curvature) -> Any:
    """Scores of what the training moved."""
    import upweight

    return upweight.attribute(
        problem.model,
        problem.train,
        problem.queries,
        parameters=list(recording.trained),
        curvature=curvature(upweight, recording),
        weight_decay=problem.weight_decay,
        device="cpu",
    )


def mean_of(every: Sequence[Any], *, unit_rows: bool = False) -> np.ndarray:
    """The mean of several scores, or the only one."""
    import upweight

    mean = every[0] if len(every) == 1 else upweight.average(every, unit_rows=unit_rows)
    return np.asarray(mean.matrix, dtype=np.float64)


def gain(mean: np.ndarray, every: Sequence[Any], task: Recorded) -> dict[str, Any]:
    """The LDS of their mean and of each training's scores, and by how much the first lies above the second, on the same draws."""
    from upweight.influence.evaluation import lds, lds_difference

    truth = task.truth("lds")
    alone = [np.asarray(one.matrix, dtype=np.float64) for one in every]
    found = lds_difference(mean, alone[0], truth)
    return {
        "lds": lds(mean, truth, resamples=0).mean,
        "alone": [lds(scores, truth, resamples=0).mean for scores in alone],
        "over_first": [found.mean, found.low, found.high],
    }


def steps_of(key: str, recording: Any) -> int | None:
    """Steps that are differentiated."""
    if not key.startswith("unrolled"):
        return None
    last = int(key.partition("-")[2] or recording.stretches)
    return steps_in(recording, recording.stretches - last)


def steps_in(recording: Any, first: int) -> int:
    """Steps from a stretch on."""
    return sum(len(list(recording.steps(stretch))) for stretch in range(first, recording.stretches))


def self_influence(task: Recorded, curvature: Curvature) -> list[float]:
    """How well scores of examples on themselves find wrong labels, on a network trained with a tenth of them."""
    from upweight.influence.evaluation import mislabel

    labels, flipped = wrong_labels(task)
    assert isinstance(task.by, Own)
    problem, recording = task.by.record(task.by.seed, labels)
    itself = replace(problem, Xq=problem.X, yq=problem.y)
    found = mislabel(np.diagonal(scores_of(itself, recording, curvature).matrix), flipped)
    return [found.auc, found.low, found.high, found.found_at_10]


def main(key: str, task: str, result: str, memory: str = "0", cpu: str = "0") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit_process(int(memory), int(cpu))
    attempt(key, RECORDED[task], lambda found: Path(result).write_text(json.dumps(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
