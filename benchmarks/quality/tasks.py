"""The tasks: a trained network, its train set and queries, how it was trained, and what retraining it gave.

Weights and ground truth lie in benchmarks/truth; `python -m benchmarks.quality.rebuild` makes them anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..problems import CNN_RECIPE, Problem, Recipe, Spec, descend, digit_images, make_model

TRUTH = Path(__file__).parents[1] / "truth"
SEED = 0  # of the trained networks, and the first of every leave-one-out refit
MISLABELLED = 0.1  # share of the train set


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked of one network."""

    key: str
    title: str
    spec: Spec
    weight_decay: float
    recipe: Recipe | None = None
    """Stochastic gradient descent; None: the optimum of a convex loss, or the recipe of an upweight run."""
    source: str | None = None
    """Of an upweight run: what was fine-tuned."""
    subsets: int = 100
    repeats: int = 2
    left_out: int = 30
    """Examples that are left out one at a time."""
    seeds: int = 2
    """Trainings without each of them."""

    @property
    def folder(self) -> Path:
        return TRUTH / self.key


_DIGITS = {"n": 1000, "m": 400}
TASKS = {
    task.key: task
    for task in (
        Task(
            key="digits-head",
            title="Softmax regression on digits (convex, L2 1e-2)",
            spec=Spec(kind="head", F=64, **_DIGITS),
            weight_decay=1e-2,
            repeats=1,
            left_out=300,
            seeds=1,
        ),
        Task(
            key="digits-cnn",
            title="All parameters of a small CNN on digits",
            spec=Spec(kind="cnn", **_DIGITS),
            weight_decay=CNN_RECIPE.weight_decay,
            recipe=CNN_RECIPE,
        ),
        Task(
            key="fashion-natural",
            title="Fashion-MNIST to digits, natural source: last block and head",
            spec=Spec(kind="tail", n=400, m=400),
            weight_decay=5e-4,
            source="natural",
            left_out=20,
        ),
        Task(
            key="fashion-robust",
            title="Fashion-MNIST to digits, robust source: last block and head",
            spec=Spec(kind="tail", n=400, m=400),
            weight_decay=5e-4,
            source="robust",
            left_out=20,
        ),
        Task(
            key="mnist-mlp",
            title="All parameters of an MLP on 5,000 images of MNIST",
            spec=Spec(kind="mlp", F=784, n=5000, m=400),
            weight_decay=1e-3,
            recipe=Recipe(epochs=10),
        ),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Inputs of the analysed part, labels, and positions in the data set that they come from."""

    X: Tensor
    y: Tensor
    Xq: Tensor
    yq: Tensor


@lru_cache(maxsize=1)
def read_data(key: str) -> Data:
    """Train set and queries of a task that is no upweight run."""
    spec = TASKS[key].spec
    if spec.kind == "mlp":
        with np.load(TRUTH / "mnist" / "images.npz") as stored:
            x = torch.from_numpy(stored["images"].reshape(-1, spec.F).astype(np.float32) / 255)
            y = torch.from_numpy(stored["labels"].astype(np.int64))
    else:
        x, y = digit_images(spec)
        x = x.flatten(1) if spec.kind == "head" else x
    return Data(x[: spec.n], y[: spec.n], x[spec.n : spec.n + spec.m], y[spec.n : spec.n + spec.m])


@dataclass(frozen=True, slots=True)
class Fit:
    """Trains the network of a task on part of its train set; a value that other processes can be sent."""

    key: str

    def __call__(self, kept: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
        task, data = TASKS[self.key], read_data(self.key)
        y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_model(task.spec)
            if task.recipe is None:
                convex(model, data.X, y, torch.from_numpy(kept), task.weight_decay)
            else:
                descend(model, data.X, y, task.recipe, torch.from_numpy(kept))
        return model.eval()


def convex(model: nn.Module, X: Tensor, y: Tensor, kept: Tensor, decay: float) -> None:
    """Softmax regression to the optimum, in float64."""
    from upweight.models.convex_head import ConvexHead

    labels = y.numpy()
    found = torch.from_numpy(ConvexHead(X, labels, model.head.out_features, decay).fit(kept.numpy(), labels))
    model.double().head.load_state_dict({"weight": found[:, :-1], "bias": found[:, -1]})


def load_problem(task: Task, *, mislabelled: bool = False) -> Problem:
    """The trained network with its data; or the one that was trained on some wrong labels."""
    if task.source is not None:
        from .tail import load_tail

        problem = load_tail(task)
    else:
        data = read_data(task.key)
        problem = Problem(task.spec, make_model(task.spec), data.X, data.y, data.Xq, data.yq, task.weight_decay)
        problem.model.load_state_dict(weights(task, "model"))
    if mislabelled:
        stored = weights(task, "mislabelled")
        labels = stored.pop("labels")
        problem.model.load_state_dict(stored)
        problem = replace(problem, y=labels, Xq=problem.X, yq=labels)
    problem.model.eval()
    return problem


def read_facts(task: Task) -> dict[str, Any]:
    """What the rebuild found out: sizes, accuracies, seconds, the largest eigenvalue of the curvature."""
    return json.loads((task.folder / "facts.json").read_text())


def flipped(task: Task) -> np.ndarray:
    """Which labels of the train set are wrong in the second network."""
    return (weights(task, "mislabelled")["labels"] != load_problem(task).y).numpy()


def weights(task: Task, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(task.folder / f"{name}.safetensors")
