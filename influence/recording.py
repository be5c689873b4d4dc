"""A training of the user's own, told so that it can be run again: the start, the batches in their order, and the rates."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from .. import UsageError
from .examples import Reader, Source
from .problem import Loss, evaluating

_DROPS = (nn.modules.dropout._DropoutNd, nn.RReLU)


@dataclass(frozen=True, slots=True, eq=False)
class _OwnStep:
    recording: Recording
    rows: Int[Tensor, " b"]
    rate: float

    def losses(self, weights: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """The loss of each example of the batch, in the modes of training."""
        like = weights[self.recording.trained[0]]
        x = self.recording.inputs(self.rows)
        x = x.to(like) if x.is_floating_point() else x.to(like.device)
        y = self.recording.labels[self.rows].to(like.device)
        logits = functional_call(self.recording.model, dict(weights), (x,))
        return self.recording.loss(logits, y)


class Recording:
    """A training by torch's SGD (dampening 0, no Nesterov) that can be run again, for `Unrolled` and `GradientDot.along`.

    Args:
        model: The network as it was before the first step, every layer in the mode that it had in training; copied. The
            parameters that ask for gradients are those that were trained.
        train: The train set: a map-style data set of (x, y), or a pair of tensors (X, y).
        batches: Positions in the train set of every step's batch, in the order of the training.
        rates: The learning rate of every step, or one for all.
        momentum: Of the descent.
        weight_decay: L2 coefficient, added to every gradient.
        loss: None for cross-entropy, else (logits [b, C], labels [b]) -> losses [b]; the training lowered their mean.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Source,
        batches: Sequence[Sequence[int] | Tensor],
        rates: float | Sequence[float],
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        loss: Loss | None = None,
    ) -> None:
        """Take a training down.

        Raises:
            UsageError: A batch or rate is missing or cannot be, nothing was trained, or a layer draws at random.
        """
        reader = Reader(train, "train")
        self._x, self.labels = reader.block(slice(0, len(reader)))
        self.batches = [torch.as_tensor(rows, dtype=torch.int64) for rows in batches]
        self.rates = [float(rates)] * len(self.batches) if isinstance(rates, float | int) else [*map(float, rates)]
        self.momentum, self.weight_decay = momentum, weight_decay
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss or _cross_entropy
        self.model = copy.deepcopy(model)
        self.start = {
            name: value.detach().clone()
            for name, value in [*self.model.named_parameters(), *self.model.named_buffers()]
        }
        self.trained = tuple(name for name, value in self.model.named_parameters() if value.requires_grad)
        self._check()
        self._length = max(1, round(len(self.batches) ** 0.5))
        self.stretches = -(-len(self.batches) // self._length)

    def _check(self) -> None:
        n = len(self.labels)
        if not self.batches:
            raise UsageError(
                "batches is empty; give the positions of every step's batch, in the order of the training."
            )
        if len(self.rates) != len(self.batches):
            raise UsageError(
                f"There are {len(self.rates)} rates for {len(self.batches)} batches; give one a step, or one for all."
            )
        for number, rows in enumerate(self.batches):
            if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= n:
                raise UsageError(
                    f"Batch {number} must hold positions between 0 and {n - 1}; got {rows.tolist()!s:.60}."
                )
            if len(set(rows.tolist())) < len(rows):
                raise UsageError(f"Batch {number} holds an example twice; name each once.")
        for name, value in (
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
            ("a rate", min(self.rates)),
        ):
            if not 0 <= value < float("inf"):  # catches NaN too
                raise UsageError(f"{name} is {value}; give a finite number >= 0.")
        if not self.trained:
            raise UsageError("No parameter of the model asks for gradients; give it as it was before the first step.")
        for name, module in self.model.named_modules():
            if module.training and isinstance(module, _DROPS) and getattr(module, "p", 1.0):
                raise UsageError(
                    f"{name} draws at random in training, and nobody recorded its draws; train without it, or in its eval mode."
                )

    def steps(self, stretch: int) -> Iterator[_OwnStep]:
        """The steps of one part.

        Args:
            stretch: Which one, from 0.

        Yields:
            In their order.
        """
        for at in range(stretch * self._length, min((stretch + 1) * self._length, len(self.batches))):
            yield _OwnStep(self, self.batches[at], self.rates[at])

    @contextmanager
    def conditions(self, stretch: int) -> Generator[None]:
        """Nothing has to hold.

        Args:
            stretch: Which part, from 0.

        Yields:
            Nothing.
        """
        yield

    def logits(self, weights: Mapping[str, Tensor], x: Tensor) -> Float[Tensor, "b C"]:
        """The network in evaluation mode.

        Args:
            weights: Parameters and buffers.
            x: Inputs.

        Returns:
            Logits [b, C].
        """
        with evaluating(self.model):
            out: Tensor = functional_call(self.model, dict(weights), (x,))
        return out

    def inputs(self, rows: Int[Tensor, " b"]) -> Tensor:
        """Train examples.

        Args:
            rows: Which ones.

        Returns:
            Inputs [b, ...].
        """
        return self._x[rows]

    def digest(self) -> str:
        """A short name of all that decides the training."""
        found = hashlib.sha256()
        tensors = [
            *self.start.values(),
            *self.batches,
            torch.tensor(self.rates, dtype=torch.float64),
            self._x,
            self.labels,
        ]
        for value in tensors:
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found.update(f"{self.momentum!r} {self.weight_decay!r}".encode())
        return found.hexdigest()


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, y, reduction="none")
