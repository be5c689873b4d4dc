"""A training run again, step by step: gradient descent with momentum and coupled weight decay, from where it began.

What a training is made of is told by a `Training`; the arithmetic of a step is here, as torch's SGD does it:
v <- momentum v + (gradient of the mean loss of the batch + decay theta), theta <- theta - rate v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .errors import SolveError
from .statistics import followed

Weights = Mapping[str, Tensor]
"""Parameters and buffers of a network by their names in it."""
TRIED = 3  # steps that are run twice


@runtime_checkable
class Step(Protocol):
    """One step of a training."""

    @property
    def rows(self) -> Int[Tensor, " b"]:
        """Positions of the batch in the train set."""

    @property
    def rate(self) -> float:
        """The learning rate."""

    def losses(self, weights: Weights) -> Float[Tensor, " b"]:
        """What the training lowered the mean of, example by example, in the modes that its layers had.

        Args:
            weights: Parameters and buffers; running statistics among them are updated in place. Inputs take their type and
                device.

        Returns:
            Losses [b].
        """


@runtime_checkable
class Training(Protocol):
    """A training that can be run again: everything but the arithmetic of a step."""

    @property
    def model(self) -> nn.Module:
        """The network, whose weights are not read: only its layers and their names."""

    @property
    def start(self) -> Weights:
        """Parameters and buffers before the first step."""

    @property
    def trained(self) -> Sequence[str]:
        """Names of the parameters that the training moves."""

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """Of the train set."""

    @property
    def momentum(self) -> float:
        """Of the descent."""

    @property
    def weight_decay(self) -> float:
        """L2 coefficient, added to every gradient."""

    @property
    def stretches(self) -> int:
        """Parts that it is replayed in, such as epochs."""

    def steps(self, stretch: int) -> Iterable[Step]:
        """The steps of one part.

        Args:
            stretch: Which one, from 0.

        Returns:
            In their order.
        """

    def conditions(self, stretch: int) -> AbstractContextManager[None]:
        """What has to hold while a part is replayed: seeds, threads.

        Args:
            stretch: Which one, from 0.

        Returns:
            A context.
        """

    def logits(self, weights: Weights, x: Tensor) -> Float[Tensor, "b C"]:
        """The network in evaluation mode.

        Args:
            weights: Parameters and buffers.
            x: Inputs.

        Returns:
            Logits [b, C].
        """

    def inputs(self, rows: Int[Tensor, " b"]) -> Tensor:
        """Train examples as `logits` takes them.

        Args:
            rows: Which ones.

        Returns:
            Inputs [b, ...].
        """

    def digest(self) -> str:
        """A short name of all that decides the training."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A training between two steps; nothing in it is changed in place."""

    theta: dict[str, Tensor]
    """Trained parameters."""
    velocity: dict[str, Tensor]
    buffers: dict[str, Tensor]
    statistics: frozenset[str] = frozenset()
    """Running statistics that have followed the training so far."""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """A step with what it began from."""

    step: Step
    theta: dict[str, Tensor]
    buffers: dict[str, Tensor]
    random: Random


@dataclass(frozen=True, slots=True, eq=False)
class Random:
    """Where torch's own generators stand: what dropout draws from."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> Random:
        """As they are."""
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), tuple(torch.cuda.get_rng_state_all()) if used else ())

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


def beginning(training: Training, device: torch.device) -> State:
    """A training before its first step.

    Args:
        training: What is replayed.
        device: Where.

    Returns:
        Its state; torch's first velocity is the first gradient, as from a velocity of zero.
    """
    theta = {name: training.start[name].detach().to(device) for name in training.trained}
    own = {name for name, _ in training.model.named_buffers()}
    buffers = {name: training.start[name].detach().to(device) for name in own}
    return State(theta, {name: torch.zeros_like(value) for name, value in theta.items()}, buffers)


def run_stretch(
    training: Training,
    stretch: int,
    state: State,
    *,
    keep: bool = False,
    steps: int | None = None,
) -> tuple[State, list[Moment]]:
    """Replay a part of a training.

    Args:
        training: What is replayed.
        stretch: Which part.
        state: Where it begins.
        keep: Remember where every step began.
        steps: So many of its steps; None: all.

    Returns:
        Where it ends, and its steps if they were asked for.

    Raises:
        SolveError: The weights cease to be finite, or a buffer changes whose change has no derivative here.
    """
    moments = []
    fixed = fixed_weights(training, next(iter(state.theta.values())))
    with training.conditions(stretch):
        for number, step in enumerate(training.steps(stretch)):
            if number == steps:
                break
            if keep:
                moments.append(Moment(step, state.theta, state.buffers, Random.now()))
            state = _after(training, step, state, fixed)
    if not all(bool(value.isfinite().all()) for value in state.theta.values()):
        raise SolveError(
            f"The replayed training diverges in part {stretch + 1} of {training.stretches}; give the start, the order of the "
            "batches and the rates that it really had."
        )
    return state, moments


def _after(training: Training, step: Step, state: State, fixed: Weights) -> State:
    """One step of stochastic gradient descent; a parameter that the loss does not reach stays as it is."""
    theta = {name: value.detach().requires_grad_() for name, value in state.theta.items()}
    buffers = {name: value.clone() for name, value in state.buffers.items()}
    with torch.enable_grad(), followed(training.model) as caught:
        losses = step.losses({**fixed, **buffers, **theta})
        gradients = torch.autograd.grad(losses.mean(), list(theta.values()), allow_unused=True)
    for name, value in buffers.items():
        if (
            name not in caught
            and not name.endswith("num_batches_tracked")
            and not torch.equal(value, state.buffers[name])
        ):
            raise SolveError(
                f"The buffer {name} changes in training in a way that is no running statistic of batch-norm; "
                "such a training cannot be unrolled."
            )
    new_theta, new_velocity = dict(state.theta), dict(state.velocity)
    for name, gradient in zip(theta, gradients, strict=True):
        if gradient is not None:
            pull = gradient.add(state.theta[name], alpha=training.weight_decay)
            new_velocity[name] = state.velocity[name].mul(training.momentum).add_(pull)
            new_theta[name] = state.theta[name].add(new_velocity[name], alpha=-step.rate)
    return State(new_theta, new_velocity, buffers, state.statistics.union(caught))


def fixed_weights(training: Training, like: Tensor) -> dict[str, Tensor]:
    """What the training leaves alone: neither trained nor a buffer.

    Args:
        training: What is replayed.
        like: Decides type and device.

    Returns:
        Parameters by name.
    """
    moving = {*training.trained, *(name for name, _ in training.model.named_buffers())}
    return {name: value.detach().to(like) for name, value in training.start.items() if name not in moving}


def check_repeatable(training: Training, device: torch.device) -> None:
    """Run the first few steps twice.

    Args:
        training: What is replayed.
        device: Where.

    Raises:
        SolveError: The two do not end at the same weights, to the bit.
    """
    ends = [run_stretch(training, 0, beginning(training, device), steps=TRIED)[0] for _ in range(2)]
    for name in training.trained:
        if not torch.equal(ends[0].theta[name], ends[1].theta[name]):
            raise SolveError(
                f"The training does not repeat itself: {name} differs after {TRIED} steps made twice; take what draws "
                "anew out of it (dropout without a seed, kernels that add in any order)."
            )


class Tape:
    """The steps of a training from the last to the first, as often as asked: what fits is kept, the rest is run again.

    Args:
        training: What is replayed.
        device: Where.
        budget: Bytes that may be kept.
        first: The stretch that `backwards` ends with; those before it are only run.
        told: Called with stretches done and their number.
    """

    def __init__(
        self,
        training: Training,
        device: torch.device,
        budget: int,
        *,
        first: int = 0,
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        self.training, self.device = training, device
        state = beginning(training, device)
        self._starts: dict[int, State] = {}
        self._kept: list[list[Moment]] = []
        self.length = 0
        size = _nbytes(state)
        parts = training.stretches
        apart = 1 if 2 * size * (parts - first) <= budget else max(1, round((parts - first) ** 0.5))
        for stretch in range(parts):
            wanted = stretch >= first
            if wanted and (stretch - first) % apart == 0:
                self._starts[stretch] = state
            state, moments = run_stretch(training, stretch, state, keep=wanted)
            self.length += len(moments)
            self._kept.append(moments)
            if size * self.length > budget:
                self._kept = []  # what was kept so far goes; from here on only the starts stay
                budget = -1
            if told is not None:
                told(stretch + 1, parts)
        if budget < 0:
            self._kept = []
        self.end = state
        self.statistics = state.statistics

    def backwards(self) -> Iterator[Moment]:
        """Every step, the last one first.

        Yields:
            Steps with what they began from.
        """
        if self._kept:
            for moments in reversed(self._kept):
                yield from reversed(moments)
            return
        bounds = [*sorted(self._starts), self.training.stretches]
        for first, last in reversed([*pairwise(bounds)]):
            states = [self._starts[first]]
            for stretch in range(first, last - 1):
                states.append(run_stretch(self.training, stretch, states[-1])[0])
            for stretch in reversed(range(first, last)):
                moments = run_stretch(self.training, stretch, states.pop(), keep=True)[1]
                yield from reversed(moments)


def _nbytes(state: State) -> int:
    return sum(value.nbytes for value in (*state.theta.values(), *state.buffers.values()))


def same_weights(found: Weights, wanted: Mapping[str, Any], tolerance: float) -> tuple[str, float]:
    """How far two sets of weights lie apart.

    Args:
        found: Weights by name.
        wanted: The same names, and perhaps more.
        tolerance: Relative distance up to which a tensor counts as the same.

    Returns:
        The first name that lies beyond the tolerance (empty: none), and the largest relative distance.
    """
    worst, first = 0.0, ""
    for name, value in found.items():
        other = wanted[name].to(value.device, torch.float64)
        apart = float((value.double() - other).norm())
        apart = apart / max(float(other.norm()), 1e-30) if apart else 0.0
        if apart > tolerance and not first:
            first = name
        worst = max(worst, apart)
    return first, worst
