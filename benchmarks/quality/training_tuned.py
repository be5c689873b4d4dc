"""A run of the package as a recorded training: with its own seed or another, and again without some of its examples."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from upweight.models.recording import RunRecording
from upweight.models.runs import Run, read_run
from upweight.models.tuning import step_rate

from ..problems import Problem
from .tail import TailTrainer, load
from .tasks import Task


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The fine-tuning of a task of the main tables."""

    task: Task

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.task.folder / "run"

    @cached_property
    def run(self) -> Run:
        """The run, with the images it was tested on."""
        return load(self.folder)

    @property
    def seed(self) -> int:
        """What the run was trained with."""
        return int(self.run.info["seed"])

    @property
    def labels(self) -> np.ndarray:
        """Of its train set."""
        return self.run.train.labels.numpy()

    def first_rate(self) -> tuple[float, int, int]:
        """The first learning rate, for how many epochs it stays, and of how many."""
        settings = read_run(self.folder)["settings"]
        rates = [step_rate(settings["learning_rate"], settings["epochs"], 1 + i) for i in range(settings["epochs"])]
        return rates[0], rates.count(rates[0]), len(rates)

    def accuracy(self) -> float:
        """On the test images of the run."""
        return float(read_run(self.folder)["accuracy"]["test"])

    def record(self, seed: int) -> tuple[Problem, RunRecording]:
        """The run, or the training of another head on the same images; every example is an image for the whole network."""
        import upweight

        run = self.run if seed == self.seed else trained_with(self.run, seed)
        train, test = ((side.images(torch.arange(len(side))), side.labels) for side in (run.train, run.test))
        problem = Problem(self.task.spec, run.model.model.eval(), *train, *test, self.task.weight_decay)
        return problem, upweight.open_recording(run, device="cpu")

    def trainer(self, question: str, m: int) -> Any:
        """What trains the run again in place, for `upweight.retraining`."""
        from upweight.models.refit import OwnTrainer

        if question in ("lds", "loo"):
            raise ValueError(f"{question} is a ground truth of the main tables.")
        problem, recording = self.record(self.seed)
        return OwnTrainer(
            FitInPlace(self.folder),
            problem.train,
            (problem.Xq[:m], problem.yq[:m]),
            seed=self.seed,
            settings={"recipe": recording.digest(), "in_place": True},
        )


def trained_with(run: Run, seed: int) -> Run:
    """The same recipe on the same images with another seed."""
    network = TailTrainer(run, recipe=True).fit(np.ones(len(run.train), dtype=bool), run.train.labels.numpy(), seed)
    told: Mapping[str, Any] = {
        "seed": seed,
        "settings": {**run.info["settings"], "seed": seed},
        "digest": hashlib.sha256(f"{run.info['digest']} {seed}".encode()).hexdigest(),
    }
    return replace(run, model=replace(run.model, model=network), info={**run.info, **told})


@lru_cache(maxsize=1)
def recording_of(folder: Path) -> RunRecording:
    """The training of a run, opened once."""
    import upweight

    return upweight.open_recording(load(folder), device="cpu")


@dataclass(frozen=True, slots=True)
class FitInPlace:
    """Trains a run again with every batch, and what its sum is divided by, as they are when nothing is left out."""

    folder: Path

    def __call__(self, kept: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
        recording = recording_of(self.folder)
        if seed != recording.settings.seed or not np.array_equal(labels, recording.labels.numpy()):
            raise ValueError("A training in place has the run's own seed and labels.")
        weights = {name: value.clone() for name, value in recording.start.items()}
        descend_recorded(recording, weights, torch.from_numpy(kept))
        model = copy.deepcopy(recording.model)
        model.load_state_dict(weights)
        return model.eval()


def descend_recorded(recording: RunRecording, weights: dict[str, Tensor], kept: Tensor) -> None:
    """Every step of a recording with torch's own optimiser; what is left out weighs nothing in its batch."""
    leaves = [weights[name].requires_grad_() for name in recording.trained]
    options = {"lr": 0.0, "momentum": recording.momentum, "weight_decay": recording.weight_decay}
    optimizer = torch.optim.SGD(leaves, **options)
    for step in all_steps(recording):
        optimizer.param_groups[0]["lr"] = step.rate
        optimizer.zero_grad()
        (step.losses(weights) * kept[step.rows]).mean().backward()
        optimizer.step()
    for leaf in leaves:
        leaf.requires_grad_(False)


def all_steps(recording: RunRecording) -> Iterator[Any]:
    """Stretch by stretch, under the conditions of each."""

    def stretch(number: int) -> Iterator[Any]:
        with recording.conditions(number):
            yield from recording.steps(number)

    return chain.from_iterable(stretch(number) for number in range(recording.stretches))
