"""Training again on part of a train set: what every trainer offers, and the one that calls a function of the user's."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from .. import UsageError
from .device import derive_seed
from .errors import DataError, TrainingError

Fit = Callable[[NDArray[np.bool_], NDArray[np.int64], int], nn.Module]
"""Which examples are kept [n], the labels of all [n], and a seed, to a network that was trained on the kept ones."""
Labels = Int[NDArray[np.int64], " n"]
_BLOCK = 256


class Trainer(Protocol):
    """Trains again on part of a train set. Pickles small; what is dear is loaded when it is first asked for."""

    seed: int
    """Of the training that the others are compared with."""

    @property
    def exact(self) -> bool:
        """Whether the result is a convex optimum: the seed does not matter, and repeats tell nothing."""
        ...

    @property
    def train_labels(self) -> Labels:
        """True labels of the train examples."""
        ...

    @property
    def train_index(self) -> Labels:
        """Their ids."""
        ...

    @property
    def query_labels(self) -> Labels:
        """True labels of the queries."""
        ...

    @property
    def query_index(self) -> Labels:
        """Their ids."""
        ...

    def identity(self) -> dict[str, Any]:
        """All that decides the results, as plain JSON values, library versions aside."""
        ...

    def shared(self) -> list[tuple[int, int]]:
        """Ids of the queries that are train examples too, each with one of these; none where the two sets are one by intent."""
        ...

    def fit(self, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> nn.Module:
        """Train.

        Args:
            kept: The examples to train on.
            labels: Of all examples.
            seed: Of all that is random.

        Returns:
            What was trained, in evaluation mode.
        """
        ...

    def rehearse(self, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> nn.Module:
        """As much of `fit` as shows whether it can be repeated."""
        ...

    def probe(self) -> Tensor:
        """A few inputs for what `fit` gives."""
        ...

    def logits(self, model: nn.Module) -> Float[NDArray[np.float64], "m C"]:
        """What a fit says of the queries."""
        ...

    def network(self, model: nn.Module) -> nn.Module:
        """The whole network that a fit belongs to: from inputs to logits."""
        ...

    def blank(self) -> nn.Module | None:
        """A network to be filled with the weights of one that `network` gave; None where only training makes one."""
        ...


class OwnTrainer:
    """A function of the user's that trains, with its data.

    Args:
        fit: Which examples are kept (bool [n]), the labels of all (int64 [n]) and a seed, as arrays of numpy, to a network that
            was trained on the kept ones alone with these labels. All that is random in it must follow from the seed. For
            several processes it must pickle: a function at the top level of a module.
        train: All examples: a map-style data set of (x, y), or a pair of tensors (X, y).
        queries: Likewise; None: the train set on itself.
        seed: Of the training that others are compared with, where parts are compared with the whole.
        exact: The fit goes to the optimum of a convex problem: the seed does not matter to it.
        settings: What decides the results and cannot be seen in the data or the text of `fit`; plain JSON values.
        make: A function without arguments that makes an untrained network; with it, trained ones can be read back from files.

    Raises:
        UsageError: `fit` is no function.
    """

    def __init__(
        self,
        fit: Fit,
        train: Any,
        queries: Any | None = None,
        *,
        seed: int = 0,
        exact: bool = False,
        settings: Mapping[str, Any] | None = None,
        make: Callable[[], nn.Module] | None = None,
    ) -> None:
        if not callable(fit):
            raise UsageError(f"fit is a {type(fit).__name__}; give a function of (kept, labels, seed) that trains.")
        self._fit, self._train, self._queries, self._make = fit, train, queries, make
        self.seed, self._exact = seed, exact
        self._settings = dict(settings or {})

    @property
    def exact(self) -> bool:
        """Whether the fit goes to a convex optimum."""
        return self._exact

    @functools.cached_property
    def train_labels(self) -> Labels:
        """True labels of the train examples."""
        return _labels(self._train, "train")

    @property
    def train_index(self) -> Labels:
        """Their positions."""
        return np.arange(len(self.train_labels))

    @functools.cached_property
    def query_labels(self) -> Labels:
        """True labels of the queries."""
        return self.train_labels if self._queries is None else _labels(self._queries, "queries")

    @property
    def query_index(self) -> Labels:
        """Their positions."""
        return np.arange(len(self.query_labels))

    @functools.cached_property
    def _hashes(self) -> tuple[list[str], list[str]]:
        train = list(_input_hashes(self._train))
        return train, train if self._queries is None else list(_input_hashes(self._queries))

    def identity(self) -> dict[str, Any]:
        """All that decides the results and can be seen: the data, and the name and text of the function."""
        train, queries = self._hashes
        return {
            "trainer": "own",
            "fit": _described(self._fit),
            "settings": self._settings,
            "exact": self._exact,
            "train_sha256": joined(train, self.train_labels),
            "queries_sha256": joined(queries, self.query_labels),
        }

    def shared(self) -> list[tuple[int, int]]:
        """Positions of queries whose input is that of a train example, with the first such example."""
        if self._queries is None:
            return []
        return equal_inputs(*self._hashes)

    def fit(self, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> nn.Module:
        """Train by the function.

        Args:
            kept: The examples to train on.
            labels: Of all examples.
            seed: Of all that is random.

        Returns:
            What it gave, in evaluation mode.

        Raises:
            UsageError: It gave something else than a network.
            TrainingError: The weights are not finite numbers.
        """
        model = self._fit(kept.copy(), labels.copy(), seed)
        if not isinstance(model, nn.Module):
            raise UsageError(f"fit gave a {type(model).__name__}; the trained torch.nn.Module is wanted.")
        require_finite(model)
        return model.eval()

    def rehearse(self, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> nn.Module:
        """The whole fit: nobody knows what is in it."""
        return self.fit(kept, labels, seed)

    def probe(self) -> Tensor:
        """The first inputs of the train set."""
        return next(_blocks(self._train))[0][:16]

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Float[NDArray[np.float64], "m C"]:
        """What a fit says of the queries."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        source = self._train if self._queries is None else self._queries
        found = [model(x.to(device)).to("cpu", torch.float64) for x, _ in _blocks(source)]
        return torch.cat(found).numpy()

    def network(self, model: nn.Module) -> nn.Module:
        """The fit itself."""
        return model

    def blank(self) -> nn.Module | None:
        """What `make` makes."""
        return None if self._make is None else self._make()


def require_finite(model: nn.Module) -> None:
    """Refuse weights of a training that diverged.

    Args:
        model: What was trained.

    Raises:
        TrainingError: A weight is not a finite number.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(f"The fit diverged: {name} is no longer finite; lower the learning rate.")


def refit_seed(seed: int, part: int, repeat: int) -> int:
    """The seed of one training on one part: 31 bits, which every library takes.

    Args:
        seed: Of the whole experiment.
        part: Position of the part.
        repeat: Which of the trainings on it.

    Returns:
        A number that depends on all three.
    """
    return derive_seed("refit", seed, part, repeat) >> 32


def equal_inputs(train: list[str], queries: list[str]) -> list[tuple[int, int]]:
    """Queries that are train examples, byte for byte.

    Args:
        train: One hash a train example.
        queries: One hash a query.

    Returns:
        Position of the query, and of the first train example that equals it.
    """
    first = {name: position for position, name in reversed(list(enumerate(train)))}
    return [(position, first[name]) for position, name in enumerate(queries) if name in first]


def hashes(x: Tensor) -> Iterator[str]:
    """A name for the bytes of each input.

    Args:
        x: Inputs [b, ...].

    Yields:
        A sha256 in hexadecimal.
    """
    head = f"{x.dtype} {list(x.shape[1:])} ".encode()
    for row in x.detach().cpu().contiguous():
        yield hashlib.sha256(head + row.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _blocks(source: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """A data set or a pair of tensors, block by block."""
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(part, Tensor) for part in source):
        if len(source[0]) != len(source[1]):
            raise ValueError(f"{len(source[0])} inputs and {len(source[1])} labels")
        yield from zip(*(part.split(_BLOCK) for part in source), strict=True)
        return
    for start in range(0, len(source), _BLOCK):
        x, y = default_collate([source[i] for i in range(start, min(start + _BLOCK, len(source)))])
        yield x, y


def _input_hashes(source: Any) -> Iterator[str]:
    for x, _ in _blocks(source):
        yield from hashes(x)


def _labels(source: Any, name: str) -> Labels:
    try:
        found = torch.cat([y for _, y in _blocks(source)])
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{name} is no data set of (x, y) and no pair of tensors (X, y) of one length ({error}); give one of these."
        ) from error
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise DataError(f"The labels of {name} must be whole numbers, one an example; got {found.dtype}.")
    return found.to("cpu", torch.int64).numpy()


def joined(names: list[str], labels: Labels) -> str:
    """One name for many examples.

    Args:
        names: One an example.
        labels: Likewise.

    Returns:
        A sha256 in hexadecimal.
    """
    return hashlib.sha256("".join(names).encode() + labels.tobytes()).hexdigest()


def _described(fit: Any) -> dict[str, Any]:
    """Name of a function, a hash of its text without comments, and what it was given beforehand."""
    if isinstance(fit, functools.partial):
        given = {str(i): repr(value) for i, value in enumerate(fit.args)}
        given |= {name: repr(value) for name, value in fit.keywords.items()}
        return {**_described(fit.func), "given": given}
    named = fit if hasattr(fit, "__qualname__") else type(fit)
    try:
        text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(named))))
        code: str | None = hashlib.sha256(text.encode()).hexdigest()
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or the middle of a line
        code = None
    return {"name": named.__qualname__, "code_sha256": code}
