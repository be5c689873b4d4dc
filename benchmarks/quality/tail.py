"""A fine-tuned network of the package as a task: what was trained, with the frozen part run once, and its training again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from upweight.models.run_trainer import RunTrainer
from upweight.models.runs import Run, load_run
from upweight.models.transfer import split

from ..problems import Problem
from .tasks import Task

QUERIES = 400
"""Test images of a run that are asked about: the first ones."""


def load(folder: Path) -> Run:
    """A run, with as many test images."""
    run = load_run(folder)
    return replace(run, test=run.test.subset(torch.arange(QUERIES)))


def load_tail(task: Task) -> Problem:
    """What the run trained, as a network of its own, and the activations that enter it."""
    run = load(task.folder / "run")
    parts = split(run.model.model, run.info["k"])
    with torch.no_grad():
        X, Xq = (parts.frozen(images.images(torch.arange(len(images)))) for images in (run.train, run.test))
    return Problem(task.spec, parts.trained, X, run.train.labels, Xq, run.test.labels, task.weight_decay)


class TailTrainer(RunTrainer):
    """The training of such a run."""

    def __init__(self, run: str | Path | Run, *, recipe: bool = False) -> None:
        super().__init__(run if isinstance(run, Run) else load(Path(run)), recipe=recipe)

    def tail(self, model: nn.Module) -> nn.Module:
        """What was trained of a network, without the frozen part."""
        return split(model, self.settings.k).trained
