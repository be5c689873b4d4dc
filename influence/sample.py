"""Both sides of an attribution without a pass over them: a few examples are read and run, and stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import nn

from .attribute import Prepared
from .calibrate import SLOT, count_flops, growing
from .examples import Reader, Source
from .per_example import gradient_plan
from .problem import Loss, Problem, make_problem, run_model
from .side import Side, examine, to_problem

MOST = 512  # examples that are read
MOST_BYTES = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """Stand-ins of both sides, as long as the real ones, and what it takes to read and run an example."""

    prepared: Prepared
    """Sides that hold one example over and over, without the memory that it would take; `facts` is empty."""
    read: float
    """Seconds to read a train example from its data set."""
    read_query: float
    """Likewise, a query."""
    run: float
    """Seconds to examine an example that is read, inside a batch."""
    run_flops: int
    """Operations of its forward pass."""
    outputs: int
    """Numbers that the layers between input and analysed logits give for an example."""

    @property
    def problem(self) -> Problem:
        """The analysed function."""
        return self.prepared.problem

    @property
    def train(self) -> Side:
        """The train set's stand-in."""
        return self.prepared.train

    @property
    def n(self) -> int:
        """Train examples."""
        return len(self.prepared.train)

    @property
    def m(self) -> int:
        """Queries; 0 where the train set is scored on itself alone."""
        return 0 if self.prepared.queries is None else len(self.prepared.queries)


def sample_sides(
    model: nn.Module,
    train: Source,
    queries: Source | None,
    *,
    parameters: Sequence[str],
    head: str | None,
    loss: Loss | None,
    dtype: torch.dtype | None,
    device: torch.device,
    batch_size: int,
    weight_decay: float | None,
) -> Sampled:
    """Read the model, and a few examples.

    Args:
        model: Any module from inputs [b, ...] to logits [b, C], in eval mode (`evaluating`).
        train: The train set.
        queries: The queries; None for the train set on itself.
        parameters: Names of the analysed parameters.
        head: Name of the last linear layer, when there is one.
        loss: None for cross-entropy.
        dtype: Type to compute in; None: the model's.
        device: Where to compute.
        batch_size: Examples in a forward pass.
        weight_decay: L2 penalty of the training run, when known.

    Returns:
        Stand-ins, and the time that one real example takes.
    """
    problem = make_problem(
        model, parameters, head=head, loss=loss, dtype=dtype, device=device, weight_decay=weight_decay
    )
    reader = Reader(train, "train")
    held, read = _few(reader)
    few = len(held)

    def examined(count: int) -> Side:
        return examine(problem, Reader((held.block(slice(0, count))), "train"), batch_size=batch_size)

    run = growing(lambda count: lambda: examined(count), min(few, batch_size)) / min(few, batch_size)
    one = examined(1)
    if not problem.linear:
        one = replace(one, plan=gradient_plan(problem, one.inputs(slice(0, 1)), one.num_classes))
    x = to_problem(problem, held.block(slice(0, 1))[0])
    outputs: list[int] = []
    with ExitStack() as stack:
        for module in () if problem.linear else model.modules():
            if not list(module.children()):
                stack.callback(module.register_forward_hook(lambda m, i, out: outputs.append(out.numel())).remove)
        run_flops = count_flops(lambda: run_model(problem, x, "train"))
    side, others, read_query = stretched(one, len(reader), batch_size), None, 0.0
    if queries is not None:
        other = Reader(queries, "queries")
        held, read_query = _few(other)
        own = examine(problem, Reader(held.block(slice(0, 1)), "queries"), batch_size=batch_size)
        others = stretched(replace(own, plan=one.plan), len(other), batch_size)
    facts: dict[str, Any] = {"n": len(reader), "weight_decay": weight_decay, "warnings": []}
    return Sampled(
        Prepared(problem, side, others, facts), read, read_query, run, run_flops, sum(outputs) + one.num_classes
    )


def _few(reader: Reader) -> tuple[Reader, float]:
    """The first examples, as many as can be read in a moment, and the seconds that one takes."""
    count = 1
    while True:
        start = perf_counter()
        x, y = reader.block(slice(0, count))
        taken = perf_counter() - start
        if count >= min(MOST, len(reader)) or 2 * taken > SLOT or 2 * x.nbytes > MOST_BYTES:
            return Reader((x, y), reader.name), taken / count
        count = min(2 * count, len(reader), MOST)


def stretched(one: Side, length: int, batch_size: int) -> Side:
    """A side of any length that takes the memory of one example.

    Args:
        one: A side of a single example.
        length: Examples that it seems to hold.
        batch_size: Examples in one pass of the network.

    Returns:
        The example, over and over; its residual is of a size at which no arithmetic is slow.
    """
    x, y = one.reader.block(slice(0, 1))
    C = one.num_classes
    slope = torch.linspace(-1, 1, C, dtype=torch.float64, device=one.logits.device)
    return replace(
        one,
        reader=Reader((x.expand(length, *x.shape[1:]), y.expand(length)), one.reader.name),
        logits=one.logits[:1].expand(length, C),
        target=one.target[:1].expand(length),
        residual=slope.expand(length, C),
        features=None if one.features is None else one.features[:1].expand(length, one.features.shape[1]),
        batch_size=batch_size,
    )
