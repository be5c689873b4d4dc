"""The training itself, differentiated: how every query's final loss depends on the weight of every train example in every step.

With eps_i the weight of example i, step s takes the gradient of (1/b) sum_{i in B_s} eps_i l_i(theta_s). At eps = 1 the adjoints
of weights and velocity run back through the very steps that were made,

    u = a_v - rate a_theta,   a_theta <- a_theta + decay u + H_s u,   a_v <- momentum u,
    d l_t / d eps_i += u . grad l_i(theta_s) / b,

with H_s the true Hessian of the batch. Batch statistics couple the examples of a batch, and running statistics carry weights of
the past into the finished network: both are differentiated too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .errors import SolveError
from .replay import Moment, Tape, Training, check_repeatable, fixed_weights, same_weights
from .side import Side, to_problem
from .statistics import applied, followed
from .work import ANY, Work

TOLERANCE = 1e-3  # relative distance between replayed and finished weights, of each tensor
AT_ONCE = 32  # queries in one backward pass
INSIDE = 40  # numbers a number of the input, inside the network and its derivatives
CHECKED = 64  # train examples whose logits are compared
Adjoint = dict[str, Tensor]
"""Derivatives of b losses in the tensor of that name, [b, ...]."""


@dataclass(frozen=True, slots=True, eq=False)
class UnrolledState:
    """A replayed training."""

    tape: Tape
    work: Work
    apart: float
    """Largest relative distance between the replayed and the finished weights."""


@dataclass(frozen=True, slots=True)
class Unrolled:
    """The exact derivative of every query's final loss in the weight of every train example, through the recorded training.

    score[t, i] = - n d l_t / d eps_i, eps_i being the weight of example i in every step that met it (1 in the training that was
    made). Positive: i is helpful to t; leaving i out (eps_i = 0, its batches divided by their size as before) raises the loss of
    t by about score / n. In a training that converges it becomes the score of the exact inverse Hessian damped by the weight
    decay. Rectifiers and maxima have the derivative that autograd gives them.

    Every step costs one second backward pass a query (about six times the products of a forward pass of its batch), shared
    passes aside: a query costs about twice the training itself.
    """

    recording: Training
    """The training: `upweight.Recording`, or `upweight.open_recording(run)`."""
    last: int | None = None
    """Stretches at its end (epochs of a run) that are differentiated, the weights before them being taken as they were; None:
    all. Where the first steps of a training decide wildly, less tells more."""

    unit: ClassVar[str] = "nats per unit weight"
    sign: ClassVar[str] = (
        "- n d loss_query / d weight_train through the recorded training; positive = helpful: removing the example raises the "
        "query's loss by about score / n"
    )
    stage: ClassVar[str] = "unrolled steps"
    """What progress is told under."""
    anywhere: ClassVar[bool] = True
    """It needs no optimum."""

    def __post_init__(self) -> None:
        if isinstance(self.recording, type) or not isinstance(self.recording, Training):
            raise UsageError(
                f"recording is {self.recording!r:.80}; give an upweight.Recording, or upweight.open_recording(run)."
            )

        if self.last is not None and self.last < 1:
            raise UsageError(f"last must be at least 1, got {self.last}; leave it out for the whole training.")

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name, and a digest of the recorded training.
        """
        told = {} if self.last is None else {"last": self.last}
        return {"name": "Unrolled", "recording": self.recording.digest(), **told}

    def fit(self, train: Side, *, like: UnrolledState | None = None, work: Work = ANY) -> UnrolledState:
        """Replay the training, and see that it is the one that made the model.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set: taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            The replayed training.

        Raises:
            SolveError: It does not end at the weights of the model.
        """
        if like is not None:
            return like
        self._check_sides(train)
        check_repeatable(self.recording, train.problem.device)
        first = 0 if self.last is None else max(0, self.recording.stretches - self.last)
        device = train.problem.device
        tape = Tape(self.recording, device, work.budget(device) // 2, first=first, told=work.told)
        made = {
            **fixed_weights(self.recording, next(iter(tape.end.theta.values()))),
            **tape.end.theta,
            **tape.end.buffers,
        }
        finished = {**train.problem.fixed, **train.problem.theta}
        layer, apart = same_weights(made, finished, TOLERANCE)
        if layer:
            raise SolveError(
                f"The replayed training does not end at the weights of the model: {layer} is the first that differs, by up to "
                f"{apart:.1e} of its length; give the start, batches, rates, momentum and weight decay that it was trained with."
            )
        return UnrolledState(tape, work, apart)

    def _check_sides(self, train: Side) -> None:
        """Refuse a model, or a train set, that is not the recording's."""
        recording, problem = self.recording, train.problem
        if problem.loss is not None:
            raise UsageError("Unrolled takes the loss that the recording was trained with; leave `loss` out.")
        names = {**problem.fixed, **problem.theta}.keys()
        if strange := recording.start.keys() ^ names:
            raise UsageError(
                f"{min(strange)} is not both in the model and in the recording; give the model that it made."
            )
        if set(problem.theta) != set(recording.trained):
            shown = list(recording.trained)
            few = shown if len(shown) <= 6 else [*shown[:5], f"... ({len(shown)} in all)"]
            raise UsageError(
                f"The recorded training moved {', '.join(few)}, and other parameters are asked for; give parameters="
                "recording.trained."
            )
        labels = recording.labels.to(problem.device)
        if len(labels) != len(train) or not bool((labels == torch.from_numpy(train.examples.label).to(labels)).all()):
            raise UsageError(
                "The train set is not the one that was recorded; give the same examples in the same order."
            )
        rows = torch.arange(min(CHECKED, len(train)))
        weights = {**problem.fixed, **problem.theta}
        with torch.no_grad():
            logits = recording.logits(weights, to_problem(problem, recording.inputs(rows)))
        allowed = 1e-3 * float(train.logits.abs().max()) + 1e-6
        if not bool(((logits.double() - train.logits[: len(rows)]).abs() <= allowed).all()):
            raise UsageError("The train images are not those that were recorded; give the same ones in the same order.")

    def solve(self, state: UnrolledState, queries: Side, rows: slice) -> Float[Tensor, "b n"]:
        """The scores of a block of queries, by going back through the training.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Scores [b, n].
        """
        size = self._at_once(state, queries)
        keeper, key = state.work.tiles, _name(queries)
        if keeper is not None:
            size = keeper.open({"unrolled": self.settings(), "dtype": str(queries.problem.dtype)}, size)
        parts = [slice(at, min(at + size, rows.stop)) for at in range(rows.start, rows.stop, size)]
        found = []
        for done, part in enumerate(parts):
            name = f"{key}-{part.start}-{part.stop}"
            kept = None if keeper is None else keeper.get(name)
            if kept is None:
                block = _scores(state.tape, queries, part, _Told(state, done, len(parts)))
                if keeper is not None:
                    keeper.put(name, block.cpu().numpy())
            else:
                block = torch.from_numpy(np.array(kept)).to(queries.problem.device)
            found.append(block)
        return torch.cat(found)

    @staticmethod
    def _at_once(state: UnrolledState, queries: Side) -> int:
        problem = queries.problem
        item = torch.finfo(problem.dtype).bits // 8
        batch = len(next(iter(state.tape.training.steps(0))).rows)
        inputs = queries.reader.block(slice(0, 1))[0].numel()
        query = item * (6 * problem.p + INSIDE * batch * inputs)  # adjoints, their successors, and what a batch leaves
        return int(max(1, min(AT_ONCE, state.work.budget(problem.device) // (2 * query))))

    def scores(
        self, state: UnrolledState, solved: Float[Tensor, "b n"], train: Side, columns: slice
    ) -> Float[Tensor, "b c"]:
        """The tile of a block of train examples.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c], nats per unit weight.
        """
        return solved[:, columns]

    def spectrum(self, state: UnrolledState) -> None:
        """Nothing is inverted.

        Args:
            state: What `fit` gave.
        """

    def warnings(self, state: UnrolledState) -> list[str]:
        """What a user must know about the replay.

        Args:
            state: What `fit` gave.

        Returns:
            One sentence where the replay does not end at the model's weights to the bit.
        """
        if not state.apart:
            return []
        return [
            f"The replayed training ends within {state.apart:.1e} of the model's weights (relative, the worst tensor), not at "
            "the same bits: the scores are those of the replay."
        ]

    def neighbours(self, state: UnrolledState) -> Iterator[tuple[str, UnrolledState]]:
        """There is nothing to vary.

        Args:
            state: What `fit` gave.

        Returns:
            None.
        """
        return iter(())


class _Told:
    """Progress of one block of queries among several."""

    def __init__(self, state: UnrolledState, block: int, blocks: int) -> None:
        self._told, self._length = state.work.told, state.tape.length
        self._done, self._all = block * self._length, blocks * self._length

    def __call__(self) -> None:
        self._done += 1
        if self._told is not None:
            self._told(self._done, self._all)


def _name(queries: Side) -> str:
    """What the scores of a side depend on, beside the training."""
    target = queries.target.cpu().numpy().tobytes()
    return hashlib.sha256(queries.fingerprint.encode() + target).hexdigest()[:16]


def _cast(values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies in another type; what is counted stays whole."""
    return {
        name: value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
        for name, value in values.items()
    }


def _scores(tape: Tape, queries: Side, rows: slice, told: _Told) -> Float[Tensor, "b n"]:
    """One pass back through the training for a block of queries."""
    training = tape.training
    weights, statistics = _at_the_end(tape, queries, rows)
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    n = len(training.labels)
    effect = next(iter(weights.values())).new_zeros(rows.stop - rows.start, n)
    fixed = fixed_weights(training, effect)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if tape.device.type == "cuda" else []):
        for moment in tape.backwards():
            here = moment.step.rows.to(effect.device)
            effect[:, here] += _back(training, moment, fixed, (weights, velocity, statistics))
            told()
    return -n * effect


def _at_the_end(tape: Tape, queries: Side, rows: slice) -> tuple[Adjoint, Adjoint]:
    """Derivatives of the losses of a block of queries in the finished weights, and in the running statistics."""
    training, problem = tape.training, queries.problem
    theta = {name: value.requires_grad_() for name, value in _cast(tape.end.theta, problem.dtype).items()}
    fixed = fixed_weights(training, next(iter(theta.values())))
    buffers = _cast(tape.end.buffers, problem.dtype)
    statistics = {
        name: value.detach().clone().requires_grad_() for name, value in buffers.items() if name in tape.statistics
    }
    leaves = {**theta, **statistics}
    x = to_problem(problem, queries.reader.block(rows)[0])
    residual = queries.residual[rows].to(problem.dtype)
    found: dict[str, list[Tensor]] = {name: [] for name in leaves}
    with torch.enable_grad(), applied(training.model, statistics):
        logits = training.logits({**fixed, **buffers, **theta}, x)
        for t in range(len(x)):
            gradients = torch.autograd.grad(
                logits[t],
                list(leaves.values()),
                residual[t],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for name, gradient in zip(leaves, gradients, strict=True):
                found[name].append(gradient)
    adjoint = {name: torch.stack(parts) for name, parts in found.items()}
    return {name: adjoint[name] for name in theta}, {name: adjoint[name] for name in statistics}


def _back(
    training: Training, moment: Moment, fixed: Mapping[str, Tensor], adjoints: tuple[Adjoint, Adjoint, Adjoint]
) -> Float[Tensor, "b c"]:
    """One step back: the adjoints are replaced in place by those before it; d l / d eps of the examples of its batch."""
    weights, velocity, statistics = adjoints
    dtype = next(iter(weights.values())).dtype
    theta = {name: value.requires_grad_() for name, value in _cast(moment.theta, dtype).items()}
    moment.random.restore()
    with torch.enable_grad(), followed(training.model) as caught:
        losses = moment.step.losses({**fixed, **_cast(moment.buffers, dtype), **theta})
        eps = torch.ones_like(losses).requires_grad_()
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            (eps * losses).mean(), list(theta.values()), create_graph=True, allow_unused=True
        )
    outputs, cotangents = [], []
    for name, gradient in zip(theta, gradients, strict=True):
        if gradient is None:
            continue  # the step does not move it
        u = velocity[name] - moment.step.rate * weights[name]
        velocity[name] = training.momentum * u
        weights[name] = weights[name] + training.weight_decay * u
        outputs.append(gradient)
        cotangents.append(u)
    for name, update in caught.items():
        if update.gain.requires_grad:
            outputs.append(update.gain)
            cotangents.append(statistics[name])
        statistics[name] = update.decay * statistics[name]
    *curved, effect = _products(outputs, [*theta.values(), eps], cotangents)
    for name, change in zip(theta, curved, strict=True):
        if change is not None:
            weights[name] = weights[name] + change
    assert effect is not None  # every gradient depends on the weights of the examples
    return effect


def _products(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor | None]:
    """Products of many cotangents with one graph: at once where torch can, else one after the other."""
    try:
        return list(
            torch.autograd.grad(
                outputs, inputs, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        )
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but not about the layers
    except RuntimeError:
        each = [
            torch.autograd.grad(outputs, inputs, [part[t] for part in cotangents], retain_graph=True, allow_unused=True)
            for t in range(len(cotangents[0]))
        ]
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]
