"""The trained networks and their ground truth, made anew: `python -m benchmarks.quality.rebuild [--tasks digits-cnn,...]`.

What is there is kept: of a stopped call the next one goes on. `--anew` begins with nothing but the images of MNIST.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..problems import make_model
from .tasks import MISLABELLED, SEED, TASKS, Fit, Task, load_problem, read_data


def trainer(task: Task) -> Any:
    """What trains again, for `upweight.retraining`."""
    from upweight.models.refit import OwnTrainer

    if task.source is not None:
        from .tail import TailTrainer

        return TailTrainer(task.folder / "run")
    data = read_data(task.key)
    exact = task.recipe is None
    X, Xq = (x.double() if exact else x for x in (data.X, data.Xq))
    settings = {"recipe": None if exact else asdict(task.recipe), "weight_decay": task.weight_decay}
    return OwnTrainer(
        Fit(task.key),
        (X, data.y),
        (Xq, data.yq),
        seed=SEED,
        exact=exact,
        settings=settings,
        make=partial(make_model, task.spec),
    )


def train(task: Task) -> None:
    """The network that the scores are of."""
    if task.source is None:
        whole = np.ones(task.spec.n, dtype=bool)
        save(task, "model", Fit(task.key)(whole, read_data(task.key).y.numpy(), SEED))
        return
    from upweight.models.checkpoints import load_model
    from upweight.models.data import load_data
    from upweight.models.finetune import fine_tune
    from upweight.models.settings import DataSettings, FineTuneSettings

    source = load_model(task.source)
    data = load_data(DataSettings(), source.spec.input_shape)
    fine_tune(source, data, FineTuneSettings(k=1, n=task.spec.n), task.folder / "run")


def save(task: Task, name: str, model: nn.Module, **more: torch.Tensor) -> None:
    from safetensors.torch import save_file

    save_file({**model.state_dict(), **more}, task.folder / f"{name}.safetensors")


def refits(task: Task, kind: str, workers: int) -> None:
    """Random halves of the train set, or the whole of it and the same without each of some examples."""
    from upweight.retraining import Design, retrain_with

    if kind == "lds":
        design = Design(subsets=task.subsets, repeats=task.repeats)
    else:
        design = Design(leave_out=tuple(left_out(task)), repeats=task.seeds)
    path = task.folder / f"{kind}.h5"
    start, used = time.perf_counter(), 0

    def told(stage: str, done: int, total: int) -> None:
        nonlocal used
        if done // 10 > used:
            used = done // 10
            print(f"  {task.key} {kind}: {done} of {total}, {time.perf_counter() - start:.0f} s", flush=True)

    retrain_with(trainer(task), design, workers=workers, out=path, report=told)


def left_out(task: Task) -> list[int]:
    """Positions drawn at random; for what is not convex half of them the examples of the largest loss, which matter more."""
    drawn = np.random.default_rng(SEED).permutation(task.spec.n)
    if task.seeds == 1:
        return sorted(drawn[: task.left_out].tolist())
    problem = load_problem(task)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(problem.model(problem.X), problem.y, reduction="none")
    worst = losses.argsort(descending=True)[: task.left_out // 2].tolist()
    others = [i for i in drawn.tolist() if i not in worst]
    return sorted(worst + others[: task.left_out - len(worst)])


def wrong_labels(task: Task) -> None:
    """The network trained on all examples, some of them with another class's label."""
    from upweight.mislabelling import mislabelled

    trains = trainer(task)
    found = mislabelled(trains, MISLABELLED, SEED)
    model = found.model if task.source is None else trains.tail(found.model)
    save(task, "mislabelled", model, labels=torch.from_numpy(found.labels))


def find_facts(task: Task) -> dict[str, Any]:
    """Sizes, accuracies, and the largest eigenvalue of the mean Gauss-Newton matrix (of its margin rows, where n is large)."""
    import upweight

    problem = load_problem(task)
    rows = "margin" if task.spec.n > 1000 else "logits"
    found = upweight.attribute(
        problem.model,
        (problem.X, problem.y),
        (problem.Xq[:1], problem.yq[:1]),
        parameters=problem.parameters,
        curvature=upweight.GaussNewton(rows=rows),
        weight_decay=task.weight_decay,
        device="cpu",
    )
    with torch.no_grad():
        right = [float((problem.model(X).argmax(1) == y).double().mean()) for X, y in (problem.train, problem.queries)]
    return {
        "title": task.title,
        "n": task.spec.n,
        "m": task.spec.m,
        "p": sum(parameter.numel() for parameter in problem.model.parameters()),
        "weight_decay": task.weight_decay,
        "accuracy": {"train": right[0], "queries": right[1]},
        "lambda_max": found.spectrum.lambda_max,
    }


def rebuild(task: Task, *, workers: int = 1, anew: bool = False) -> None:
    """All steps that are not done yet, and what each of them took."""
    if anew:
        shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    path = task.folder / "facts.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    steps: dict[str, Callable[[], Any]] = {
        "model": lambda: train(task),
        "lds": lambda: refits(task, "lds", workers),
        "loo": lambda: refits(task, "loo", workers),
        "facts": lambda: facts.update(find_facts(task)),
        "mislabelled": lambda: wrong_labels(task),
    }
    for name, step in steps.items():
        if name in facts.get("seconds", {}):
            continue
        start = time.perf_counter()
        step()
        facts["seconds"] = facts.get("seconds", {}) | {name: round(time.perf_counter() - start, 1)}
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{task.key}: {name}, {facts['seconds'][name]} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS), help="only these, separated by commas")
    parser.add_argument("--workers", type=int, default=1, help="processes that retrain")
    parser.add_argument("--anew", action="store_true", help="begin with nothing")
    words = parser.parse_args()
    torch.set_num_threads(1)
    for key in words.tasks.split(","):
        rebuild(TASKS[key], workers=words.workers, anew=words.anew)


if __name__ == "__main__":
    main()
