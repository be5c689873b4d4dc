"""Trainings that are recorded: two networks, every step of theirs, and what was found out by training them again.

The ground truth of the short training lies in benchmarks/truth/short-mlp; `python -m benchmarks.quality.training` makes it
anew. The other network is a task of the main tables, with its ground truth of the first queries.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..problems import Problem, Recipe, Spec, descend, digits, make_model
from .tasks import MISLABELLED, SEED, TASKS, TRUTH, Data, read_data

SUBSETS, LEFT_OUT, FEW = 100, 40, 0.05
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A network of which every step is known."""

    key: str
    title: str
    n: int
    m: int
    recipe: Recipe
    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    windows: tuple[int, ...]
    """Parts of the training, from its end, that are differentiated alone; in stretches of `Recording`."""
    every: int
    """Stretches that one checkpoint stands for."""
    questions: tuple[str, ...]
    """Names of the ground truths."""
    picked: float | None = None
    """Damping of GaussNewton that is best on these ground truths, of half decades."""

    def truth(self, question: str) -> Any:
        """What retraining gave for the queries asked here."""
        from upweight.cache.truth import open_truth

        found, m = open_truth(TRUTH / self.key / f"{question}.h5"), self.m
        own = {name: getattr(found, name)[..., :m] for name in ("loss", "margin")}
        return replace(found, **own, query_index=found.query_index[:m])


def short_model() -> nn.Module:
    """A smooth network: no rectifier, no maximum."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def short_data() -> Data:
    """The first of the digits, as rows of pixels."""
    (images, labels), (n, m) = digits(), (300, 100)
    x, y = torch.from_numpy(images).float(), torch.from_numpy(labels).long()
    return Data(x[:n], y[:n], x[n : n + m], y[n : n + m])


def cnn_data() -> Data:
    """The data of the main table, with the first of its queries."""
    found = read_data("digits-cnn")
    return replace(found, Xq=found.Xq[:32], yq=found.yq[:32])


_CNN = TASKS["digits-cnn"]
assert _CNN.recipe is not None
RECORDED = {
    task.key: task
    for task in (
        Recorded(
            key="short-mlp",
            title="A short training: MLP 64-32-10 (tanh) on 300 digits, 60 steps",
            n=300,
            m=100,
            recipe=Recipe(epochs=10),
            make=short_model,
            data=short_data,
            windows=(1, 2, 4),
            every=1,
            questions=("lds", "loo", "same-halves", "same-few", "same-loo"),
            picked=0.1,
        ),
        Recorded(
            key="digits-cnn",
            title="A long training from random weights: the CNN on digits, 600 steps, 32 queries",
            n=_CNN.spec.n,
            m=32,
            recipe=_CNN.recipe,
            make=partial(make_model, _CNN.spec),
            data=cnn_data,
            windows=(2, 4, 8, 16),
            every=2,
            questions=("lds", "loo"),
        ),
    )
}


# ------------------------------------------------------------------------------------------------------------- training


def record(task: Recorded, labels: Tensor | None = None) -> tuple[Problem, Any]:
    """The network trained again on all examples, as a problem, and its `upweight.Recording`."""
    import upweight

    data, recipe = task.data(), task.recipe
    y = data.y if labels is None else labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        start = task.make().train()
        state = torch.get_rng_state()
        batches = [rows for _ in range(recipe.epochs) for rows in torch.randperm(task.n).split(recipe.batch)]
        torch.set_rng_state(state)
        recording = upweight.Recording(
            start, (data.X, y), batches, recipe.rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay
        )
        descend(start, data.X, y, recipe)
    queries = (data.Xq, data.yq) if labels is None else (data.X, y)
    spec = Spec(kind="mlp", n=task.n, m=len(queries[1]))  # all parameters are analysed
    return Problem(spec, start.eval(), data.X, y, *queries, recipe.weight_decay), recording


@dataclass(frozen=True, slots=True)
class ShortFit:
    """Trains the short network on part of its train set."""

    in_place: bool
    """Batches stay as they are with all examples, and those left out weigh nothing; otherwise batches are filled up."""

    def __call__(self, kept: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
        task = RECORDED["short-mlp"]
        data, y, part = task.data(), torch.from_numpy(np.asarray(labels, dtype=np.int64)), torch.from_numpy(kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = task.make()
            (descend_in_place if self.in_place else descend)(model, data.X, y, task.recipe, part)
        return model.eval()


def descend_in_place(model: nn.Module, X: Tensor, y: Tensor, recipe: Recipe, kept: Tensor) -> None:
    """`descend` with every batch, and what its sum is divided by, as they are when nothing is left out."""
    options = {"lr": recipe.rate, "momentum": MOMENTUM, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(y)).split(recipe.batch):
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(X[rows]), y[rows], reduction="none")
            (losses * kept[rows]).mean().backward()
            optimizer.step()


# --------------------------------------------------------------------------------------------------------- ground truth


def trainer(question: str) -> Any:
    """What trains the short network again, for `upweight.retraining`."""
    from upweight.models.refit import OwnTrainer

    task, data, in_place = RECORDED["short-mlp"], short_data(), question.startswith("same")
    settings = {"recipe": asdict(task.recipe), "in_place": in_place}
    fit = ShortFit(in_place)
    return OwnTrainer(fit, (data.X, data.y), (data.Xq, data.yq), seed=SEED, settings=settings, make=short_model)


def design(question: str) -> Any:
    """What is left out for a question."""
    from upweight.influence.truth import random_parts
    from upweight.retraining import Design

    if question == "lds":
        return Design(subsets=SUBSETS, repeats=2)
    if question in ("loo", "same-loo"):
        drawn = np.random.default_rng(SEED).permutation(RECORDED["short-mlp"].n)[:LEFT_OUT]
        return Design(leave_out=tuple(sorted(drawn.tolist())), repeats=2 if question == "loo" else 1)
    share = 0.5 if question == "same-halves" else 1 - FEW
    return Design(parts=random_parts(short_data().y.numpy(), SUBSETS, share, SEED), repeats=1)


def wrong_labels() -> tuple[Tensor, np.ndarray]:
    """Labels of the short task of which a tenth are wrong, and which."""
    from upweight.mislabelling import flip_labels

    labels = short_data().y.numpy()
    changed = flip_labels(labels, MISLABELLED, SEED)
    return torch.from_numpy(changed), changed != labels


def rebuild(*, workers: int = 1, anew: bool = False) -> None:
    """The ground truth of the short training; what is there is kept."""
    from upweight.retraining import retrain_with

    task = RECORDED["short-mlp"]
    folder = TRUTH / task.key
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "seconds.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for question in task.questions:
        if question in seconds:
            continue
        start = time.perf_counter()
        retrain_with(trainer(question), design(question), workers=workers, out=folder / f"{question}.h5")
        seconds[question] = round(time.perf_counter() - start, 1)
        path.write_text(json.dumps(seconds, indent=1) + "\n")
        print(f"{task.key}: {question}, {seconds[question]} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rebuild(anew="--anew" in sys.argv)
