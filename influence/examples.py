"""One side of an attribution, train set or queries: reading it block by block, and what is kept of every example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .errors import ShapeError

Progress = Callable[[str, int, int], None]
Source = Dataset[Any] | Sequence[Any] | tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What is kept of the examples of one side; every array has one row an example."""

    index: NDArray[np.int64]
    """Position in the data set that was given: the id printed in tables."""
    label: NDArray[np.int64]
    """True class."""
    prediction: NDArray[np.int64]
    """Class of the largest logit."""
    loss: NDArray[np.float64]
    """Loss at the true label, nats."""
    residual: NDArray[np.float64] | None = None
    """Gradient of the loss in the logits [., C], at the true label: softmax minus one-hot for cross-entropy."""
    features: NDArray[Any] | None = None
    """Input of the last linear layer [., F]."""

    def __post_init__(self) -> None:
        for name in ("label", "prediction", "loss", "residual", "features"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.index):
                raise ShapeError(f"{name} has {len(value)} rows for {len(self.index)} examples.")

    def __len__(self) -> int:
        return len(self.index)


def spread(length: int, count: int, run: int) -> list[slice]:
    """A sample of rows in short runs: a data set sorted by class must not be judged by its first class.

    Args:
        length: Rows there are.
        count: Rows wanted; all, when there are fewer.
        run: Rows that follow each other.

    Returns:
        Slices that do not overlap.
    """
    if length <= count:
        return [slice(start, min(start + run, length)) for start in range(0, length, run)]
    starts = np.linspace(0, length - run, count // run).astype(int)
    return [slice(int(start), int(start) + run) for start in starts]


class Reader:
    """Blocks of (x, y) from a data set or a pair of tensors, in order.

    Args:
        source: A map-style data set of (x, y), or a pair of tensors (X, y) of one length.
        name: "train" or "queries", for messages.

    Raises:
        ShapeError: The source is empty, or neither of the two kinds, or the two tensors differ in length.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.name = name
        self._pair: tuple[Tensor, Tensor] | None = None
        self._source: Any = source
        if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(part, Tensor) for part in source):
            X, y = source
            if len(X) != len(y):
                raise ShapeError(f"The {name} tensors hold {len(X)} inputs and {len(y)} labels; give as many of each.")
            self._pair = (X, y)
        elif not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise ShapeError(
                f"{name} is a {type(source).__name__}; give a data set of (x, y) with a length, or a pair of tensors (X, y)."
            )
        if len(self) == 0:
            raise ShapeError(f"{name} is empty; at least one example is needed.")

    def __len__(self) -> int:
        return len(self._pair[0]) if self._pair is not None else len(self._source)

    def block(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The examples of some rows.

        Args:
            rows: Which ones; a step is not looked at.

        Returns:
            x [b, ...] and y [b] (int64), on the CPU or wherever the tensors were given.

        Raises:
            ShapeError: An item is not a pair (x, y), or a label is not a whole number.
        """
        if self._pair is not None:
            x, y = self._pair[0][rows], self._pair[1][rows]
        else:
            wanted = list(range(rows.start, rows.stop))
            many = getattr(self._source, "__getitems__", None)
            items = many(wanted) if many is not None else [self._source[i] for i in wanted]
            if not (isinstance(items[0], (tuple, list)) and len(items[0]) == 2):
                raise ShapeError(f"Example {rows.start} of {self.name} is not a pair (x, y).")
            x, y = default_collate(items)
        if y.ndim != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ShapeError(
                f"The labels of {self.name} must be whole numbers, one an example; got {y.dtype} {list(y.shape)}."
            )
        return x, y.long()

    def blocks(self, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """All examples, block by block.

        Args:
            size: Examples in a block; the last may be shorter.

        Yields:
            The rows, x and y.
        """
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, *self.block(rows)
