"""Gradients at several points of a training: a side examined again with the weights of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .gradients import Gradients
from .problem import Problem
from .replay import Training, beginning, fixed_weights, run_stretch
from .side import Side, examine
from .work import ANY, Work

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Along:
    """A train set at every checkpoint."""

    train: tuple[Gradients, ...]
    rates: tuple[float, ...]
    queries: dict[int, tuple[Side, tuple[Gradients, ...]]] = field(default_factory=dict)
    """Queries at every checkpoint, by the identity of the side; the side is held, so that no other gets its number."""

    @classmethod
    def of(cls, train: Side, checkpoints: tuple[Weights, ...], rates: tuple[float, ...], work: Work = ANY) -> Along:
        """Examine a train set at every checkpoint.

        Args:
            train: At the finished weights.
            checkpoints: Weights by name.
            rates: One a checkpoint.
            work: Memory, of which kept gradients take a part.

        Returns:
            All of them.
        """
        moved = [_moved(train, _problem_at(train.problem, weights)) for weights in checkpoints]
        share = replace(work, memory=work.budget(train.logits.device) // max(len(moved), 1))
        return cls(tuple(Gradients.of(side, share) for side in moved), rates)

    def scores(self, queries: Side, rows: slice) -> Float[Tensor, "b n"]:
        """Sum over checkpoints of rate x dot products.

        Args:
            queries: At the finished weights.
            rows: A block of them.

        Returns:
            Scores [b, n].
        """
        if id(queries) not in self.queries:
            moved = [_moved(queries, train.side.problem) for train in self.train]
            self.queries[id(queries)] = queries, tuple(Gradients.of(side, keep=False) for side in moved)
        every, total = slice(0, len(self.train[0].side)), None
        for rate, train, own in zip(self.rates, self.train, self.queries[id(queries)][1], strict=True):
            part = rate * train.dots(own.packed(rows), every)
            total = part if total is None else total.add_(part)
        assert total is not None  # there is a checkpoint
        return total


def _moved(side: Side, problem: Problem) -> Side:
    """A side at other weights, its losses taken at the same labels."""
    other = examine(problem, side.reader, batch_size=side.batch_size)
    residual = problem.output_losses(other.logits, side.target)[1]
    return replace(other, target=side.target, residual=residual, plan=side.plan)


def _problem_at(problem: Problem, weights: Weights) -> Problem:
    own = {**problem.fixed, **problem.theta}
    if strange := [name for name in weights if name not in own]:
        raise UsageError(
            f"A checkpoint holds {strange[0]!r}, which is no weight of the model; give its own state dicts."
        )
    if missing := [name for name in problem.theta if name not in weights]:
        raise UsageError(f"A checkpoint lacks {missing[0]!r}, which is analysed; give whole state dicts.")
    moved = dict(own)
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise UsageError(
                f"A checkpoint has {name!r} of shape {list(value.shape)} instead of {list(own[name].shape)}; give state dicts "
                "of this very model."
            )
        moved[name] = value.detach().to(own[name])
    return replace(
        problem,
        theta={name: moved[name] for name in problem.theta},
        fixed={name: moved[name] for name in problem.fixed},
    )


def weights_digest(weights: Weights) -> str:
    """A short name of some weights.

    Args:
        weights: By name.

    Returns:
        16 hexadecimal digits.
    """
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def points(training: Training, every: int) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Weights that a training passed, each with the rates of the steps that it stands for.

    Args:
        training: What is replayed.
        every: Stretches (epochs of a run) that one point stands for; it lies in the middle of them.

    Returns:
        Weights by name, parameters and buffers; sums of learning rates, over 1 - momentum.

    Raises:
        UsageError: `every` is below 1, or the momentum is not below 1.
    """
    if every < 1 or training.momentum >= 1:
        raise UsageError(f"every is {every} and the momentum {training.momentum}; give at least 1, and below 1.")
    state = beginning(training, torch.device("cpu"))
    fixed = fixed_weights(training, next(iter(state.theta.values())))
    found: list[dict[str, Tensor]] = []
    rates: list[float] = []
    for first in range(0, training.stretches, every):
        moments: list[Any] = []
        for stretch in range(first, min(first + every, training.stretches)):
            state, more = run_stretch(training, stretch, state, keep=True)
            moments += more
        middle = moments[len(moments) // 2]
        found.append({**fixed, **middle.buffers, **middle.theta})
        rates.append(sum(moment.step.rate for moment in moments) / (1 - training.momentum))
    return found, rates
