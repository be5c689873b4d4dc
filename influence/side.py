"""Examining a side: one pass of the network over it that keeps what every method and every report needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import SolveError
from .examples import Examples, Progress, Reader
from .layers import Plan
from .per_example import gradients, lengths
from .problem import Problem, check_logits, run_model

QueryLabel = Literal["true", "predicted"]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A train set or a set of queries, examined; tensors lie on the problem's device."""

    problem: Problem
    reader: Reader
    examples: Examples
    logits: Float[Tensor, "n C"]
    """float64."""
    target: Int[Tensor, " n"]
    """The label that each loss is taken at: the true or the predicted one."""
    residual: Float[Tensor, "n C"]
    """Gradient of the loss in the logits, at `target`, float64."""
    features: Float[Tensor, "n F"] | None
    """Input of the head, float64."""
    batch_size: int
    fingerprint: str
    """sha256 of inputs and labels, whatever the batches they were read in."""
    plan: Plan | None = None
    """Which layers per-example gradients can be read off; None: autograd does it all."""

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.logits.shape[1]

    def inputs(self, rows: slice) -> Tensor:
        """What `Problem.logits` takes for some rows.

        Args:
            rows: Which examples.

        Returns:
            Features of a linear problem, inputs otherwise, on the problem's device.
        """
        if self.problem.linear:
            assert self.features is not None  # a linear problem has a head, and `examine` kept its input
            return self.features[rows]
        return to_problem(self.problem, self.reader.block(rows)[0])

    def gradients(self, rows: slice) -> Float[Tensor, "b p"]:
        """Per-example gradients at `target`.

        Args:
            rows: Which examples.

        Returns:
            Gradients [b, p], nats per unit of parameter.
        """
        return self._in_batches(rows, self.problem.gradients, gradients)

    def gradient_lengths(self, rows: slice) -> Float[Tensor, " b"]:
        """Euclidean lengths of the per-example gradients at `target`.

        Args:
            rows: Which examples.

        Returns:
            Lengths [b], nats per unit of parameter.
        """
        return self._in_batches(rows, lambda z, r: self.problem.gradients(z, r).norm(dim=1), lengths)

    def _in_batches(
        self, rows: slice, plain: Callable[[Tensor, Tensor], Tensor], by_layer: Callable[..., Tensor]
    ) -> Tensor:
        parts = []
        for start in range(rows.start, rows.stop, self.batch_size):
            part = slice(start, min(start + self.batch_size, rows.stop))
            z, r = self.inputs(part), self.residual[part]
            parts.append(plain(z, r) if self.plan is None else by_layer(self.problem, self.plan, z, r))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def to_problem(problem: Problem, x: Tensor) -> Tensor:
    """An input where the problem computes.

    Args:
        problem: The problem.
        x: Inputs.

    Returns:
        The same on the problem's device; floating point in the problem's type.
    """
    return x.to(problem.device, problem.dtype) if x.is_floating_point() else x.to(problem.device)


def examine(
    problem: Problem,
    reader: Reader,
    *,
    query_label: QueryLabel = "true",
    index: Sequence[int] | None = None,
    batch_size: int,
    progress: Progress | None = None,
) -> Side:
    """One forward pass over a side.

    Args:
        problem: The analysed function; its model is in eval mode.
        reader: The examples.
        query_label: Which label the loss of each example is taken at.
        index: Ids of the examples; None: their positions.
        batch_size: Examples in a forward pass.
        progress: Told after each block.

    Returns:
        Predictions, losses, residuals and features of all examples.

    Raises:
        SolveError: The model's output is not what its last linear layer gives.
    """
    logits_: list[Tensor] = []
    labels_: list[Tensor] = []
    features_: list[Tensor | None] = []
    digests = hashlib.sha256(), hashlib.sha256()
    with torch.no_grad(), head_inputs(problem) as caught:
        for rows, x, y in reader.blocks(batch_size):
            caught.clear()
            logits = run_model(problem, to_problem(problem, x), reader.name)
            y = y.to(problem.device)
            check_logits(logits, y, rows, reader.name)
            if problem.head is not None:
                features_.append(_head_input(problem, caught, logits, rows, reader.name))
            for digest, part in zip(digests, (x, y), strict=True):
                digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            logits_.append(logits.double())
            labels_.append(y)
            if progress is not None:
                progress(f"read {reader.name}", rows.stop, len(reader))
    logits, label = torch.cat(logits_), torch.cat(labels_)
    kept = [phi for phi in features_ if phi is not None]
    features = torch.cat(kept) if kept and len(kept) == len(logits_) else None
    if features is None and problem.linear:
        raise SolveError(
            f"The output of {type(problem.model).__name__} is not what its last linear layer {problem.head!r} gives (something "
            "follows it, or it runs more than once). Make it the last step, or choose other `parameters`."
        )
    prediction = logits.argmax(1)
    loss, residual = problem.output_losses(logits, label)
    target = prediction if query_label == "predicted" else label
    examples = Examples(
        index=np.arange(len(reader)) if index is None else np.asarray(index, dtype=np.int64),
        label=label.cpu().numpy(),
        prediction=prediction.cpu().numpy(),
        loss=loss.cpu().numpy(),
        residual=residual.cpu().numpy(),
        features=None if features is None else features.to(problem.dtype).cpu().numpy(),
    )
    if query_label == "predicted":
        residual = problem.output_losses(logits, target)[1]
    fingerprint = "".join(digest.hexdigest() for digest in digests)
    return Side(problem, reader, examples, logits, target, residual, features, batch_size, fingerprint)


@contextmanager
def head_inputs(problem: Problem) -> Generator[list[Tensor]]:
    """Catch what goes into the head.

    Args:
        problem: The problem; nothing is caught when it has no head.

    Yields:
        A list that grows by one tensor each time the head runs.
    """
    caught: list[Tensor] = []
    if problem.head is None:
        yield caught
        return
    head = problem.model.get_submodule(problem.head)
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    try:
        yield caught
    finally:
        handle.remove()


def _head_input(problem: Problem, caught: list[Tensor], logits: Tensor, rows: slice, name: str) -> Tensor | None:
    """The features of a block in float64, or None when the logits are not the head's output on them."""
    if len(caught) != 1 or caught[0].ndim != 2 or len(caught[0]) != len(logits):
        return None
    phi = caught[0].double()
    if not bool(torch.isfinite(phi).all()):
        raise SolveError(f"The features of a {name} example in rows {rows.start} to {rows.stop} are NaN or infinite.")
    weight, bias = problem.head_parameters
    if weight.shape[0] != logits.shape[1]:
        return None
    again = torch.nn.functional.linear(phi, weight, bias)
    scale = phi.norm(dim=1, keepdim=True) * weight.norm(dim=1) + logits.abs()
    rounding = 64 * torch.finfo(problem.dtype).eps * phi.shape[1] ** 0.5  # of a sum of F products, generously
    return phi if bool(((again - logits).abs() <= rounding * scale + 1e-30).all()) else None
