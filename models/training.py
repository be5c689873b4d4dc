"""The loop that every fit here shares: stochastic gradient descent over epochs, saved after each, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from .checkpoints import read_tensors, write_tensors
from .device import generator, seeded
from .errors import CheckpointError, RunMismatch, TrainingError

Progress = Callable[[str, int, int], None]
Batch = tuple[Tensor, ...]
"""Inputs, labels, and whatever else the loss takes."""
Batches = Callable[[int], Iterable[Batch]]
"""An epoch, counted from 1, to its batches."""
Loss = Callable[[nn.Module, Batch, int, int], Tensor]
"""Mean loss of a module over a batch; epoch, counted from 1, and number of the batch, counted from 0."""


def cross_entropy(module: nn.Module, batch: Batch, epoch: int, step: int) -> Tensor:
    """The loss of a fit that knows no other."""
    return functional.cross_entropy(module(batch[0]), batch[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What `fit` is asked to do."""

    stage: str
    """What progress is reported as."""
    epochs: int
    seed: int
    """Seeds dropout, anew for each epoch."""
    rate: Callable[[int, int], float]
    """Epoch, counted from 1, and batch, counted from 0, to the learning rate."""
    partial: Path | None
    """Where the state is kept after each epoch; None: nowhere."""
    settings: Mapping[str, Any]
    """All that decides the result, as plain JSON values; the state of another fit is refused."""
    measure: Callable[[int], Mapping[str, float]] | None = None
    """Epoch to further numbers for the history."""
    loss: Loss = cross_entropy
    """What is minimised."""


@dataclass(slots=True)
class FitState:
    """How far a fit has come."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def batch_order(
    n: int, batch_size: int, seed: int, epoch: int, kept: Bool[Tensor, " n"] | None = None
) -> Iterator[Int[Tensor, " b"]]:
    """The rows of each batch of one epoch; they depend on the seed and the epoch alone, so that a fit can resume.

    Args:
        n: Number of examples.
        batch_size: Rows in a batch; the last one may have fewer.
        seed: Seed of the run.
        epoch: Counted from 1.
        kept: Examples that are met, in the order that they have among all: leaving few out disturbs it little; None: all.

    Yields:
        Rows, int64, on the CPU.
    """
    order = torch.randperm(n, generator=generator("batch order", seed, epoch))
    if kept is not None:
        order = order[kept[order]]
        n = len(order)
    # a single image left over joins the batch before it: batch-norm finds no spread in one image
    stop = n - 1 if n % batch_size == 1 and n > batch_size > 1 else n
    for start in range(0, stop, batch_size):
        end = start + batch_size
        yield order[start : end if end < stop else n]


def run_epoch(
    module: nn.Module,
    optimizer: SGD,
    batches: Iterable[Batch],
    rate: Callable[[int], float],
    loss: Callable[[nn.Module, Batch, int], Tensor] | None = None,
) -> float:
    """One pass of stochastic gradient descent.

    Args:
        module: What is trained, in the mode it should have.
        optimizer: Holds its parameters.
        batches: Inputs, labels, and whatever else the loss takes.
        rate: Number of the batch, from 0, to its learning rate.
        loss: Module, batch and its number to the mean loss over the batch; cross-entropy when not given.

    Returns:
        Mean loss over the examples as they were met, in nats.

    Raises:
        TrainingError: The loss or a weight is not a finite number.
    """
    loss = loss or _at(cross_entropy, epoch=1)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad(set_to_none=True)
        value = loss(module, batch, step)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total = total.to(value.device) + value.detach() * len(batch[1])
        count += len(batch[1])
    mean = float(total) / count
    if not math.isfinite(mean):
        raise TrainingError(f"The fit diverged: its loss became {mean}; lower the learning rate.")
    trained = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]
    if not torch.stack([parameter.isfinite().all() for parameter in trained]).all():  # after the last step
        raise TrainingError("The fit diverged: its weights are no longer finite; lower the learning rate.")
    return mean


def save_partial(path: Path, module: nn.Module, optimizer: SGD, state: FitState, settings: Mapping[str, Any]) -> None:
    """Keep all that is needed to go on after this epoch.

    Args:
        path: The safetensors file to replace.
        module: What is trained.
        optimizer: With its momentum buffers.
        state: How far the fit has come.
        settings: All that decides the result.
    """
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for position, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if (buffer := optimizer.state[parameter].get("momentum_buffer")) is not None:
            tensors[f"momentum.{position}"] = buffer
    kept = {"epoch": state.epoch, "history": state.history, "seconds": state.seconds, "settings": dict(settings)}
    write_tensors(path, tensors, {"upweight-partial-fit": json.dumps(kept)}, durable=False)


def load_partial(path: Path, module: nn.Module, optimizer: SGD, settings: Mapping[str, Any]) -> FitState:
    """Go on from a file that `save_partial` wrote; begin anew when there is none, or it is damaged.

    Args:
        path: The file.
        module: Receives the weights.
        optimizer: Receives the momentum buffers.
        settings: All that decides the result of this fit.

    Returns:
        How far that fit had come.
    """
    found = read_partial(path)
    if found is None:
        return FitState()
    tensors, kept = found
    require_same_settings(path, kept["settings"], settings)
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    for position, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if (buffer := tensors.get(f"momentum.{position}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
    return FitState(kept["epoch"], kept["history"], kept["seconds"])


def read_partial(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What a file that `save_partial` wrote holds.

    Args:
        path: The file.

    Returns:
        Tensors by name; epoch, history, seconds and settings. None where there is no such file, or it is damaged: nothing
        is lost then but time, as a fit is a function of its settings.
    """
    if not path.is_file():
        return None
    try:
        tensors, header = read_tensors(path)
        return tensors, dict(json.loads(header["upweight-partial-fit"]))
    except (CheckpointError, KeyError, ValueError):
        return None


def require_same_settings(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to build on results that were made otherwise.

    Args:
        path: What holds them, for the message.
        found: The settings they were made with.
        asked: The settings of this call.

    Raises:
        RunMismatch: The two differ; the message shows where.
    """
    names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
    if names:
        made, wants = (", ".join(f"{n}={_short(of.get(n))}" for n in names) for of in (found, asked))
        raise RunMismatch(
            f"{path} was made with {made}; this call asks {wants}. "
            "Pass --overwrite to make it anew, or --out DIR to keep both."
        )


def _short(value: Any) -> str:
    word = str(value)
    return word if len(word) <= 40 else f"{word[:12]}..."


def fit(
    module: nn.Module, optimizer: SGD, batches: Batches, plan: FitPlan, progress: Progress | None = None
) -> FitState:
    """Train for some epochs in training mode, from where an earlier call was stopped.

    Args:
        module: What is trained, on its device.
        optimizer: Holds its parameters, in one group.
        batches: What is met in each epoch; a function of the epoch alone.
        plan: How.
        progress: Told where it begins, and after each epoch.

    Returns:
        The epochs' history.
    """
    device = next(module.parameters()).device
    state = FitState() if plan.partial is None else load_partial(plan.partial, module, optimizer, plan.settings)
    if progress:
        progress(plan.stage, state.epoch, plan.epochs)
    for epoch in range(state.epoch + 1, plan.epochs + 1):
        started = time.monotonic()
        module.train()
        with seeded("dropout", plan.seed, epoch, device=device):
            loss = run_epoch(module, optimizer, batches(epoch), partial(plan.rate, epoch), _at(plan.loss, epoch))
        entry = {"epoch": epoch, "loss": loss}
        if plan.measure is not None:
            entry |= plan.measure(epoch)
        state.epoch = epoch
        state.seconds += time.monotonic() - started
        state.history.append(entry)
        if plan.partial is not None:
            save_partial(plan.partial, module, optimizer, state, plan.settings)
        if progress:
            progress(plan.stage, epoch, plan.epochs)
    return state


def _at(loss: Loss, epoch: int) -> Callable[[nn.Module, Batch, int], Tensor]:
    return lambda module, batch, step: loss(module, batch, epoch, step)


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A short name for settings: equal ones have equal digests.

    Args:
        settings: Plain JSON values.

    Returns:
        A sha256 in hexadecimal.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
