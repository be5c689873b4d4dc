"""What every method of scoring offers: fit once, solve and score block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .side import Side
from .spectrum import Spectrum
from .work import ANY, Work

State = TypeVar("State")


@runtime_checkable
class Curvature(Protocol[State]):
    """score[t, i] = + g_t^T H^+ g_i, for one choice of H and of its inverse."""

    @property
    def unit(self) -> str:
        """Unit of a score."""

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart, ready for JSON.

        Returns:
            Name and options.
        """

    def fit(self, train: Side, *, like: State | None = None, work: Work = ANY) -> State:
        """The dear step: form and factor the mean curvature over the train set.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            Whatever `solve` and `scores` need.
        """

    def solve(self, state: State, queries: Side, rows: slice) -> Float[Tensor, "b k"]:
        """H^+ g for a block of queries, in the method's own coordinates.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients [b, k].
        """

    def scores(self, state: State, solved: Float[Tensor, "b k"], train: Side, columns: slice) -> Float[Tensor, "b c"]:
        """The tile of scores of solved queries against a block of train examples.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block of train examples.

        Returns:
            Scores [b, c], nats per unit weight; positive: the train example is helpful to the query.
        """

    def spectrum(self, state: State) -> Spectrum | None:
        """The facts of the curvature.

        Args:
            state: What `fit` gave.

        Returns:
            The facts, or None for a method without a curvature.
        """

    def warnings(self, state: State) -> list[str]:
        """What a user must know about this inverse.

        Args:
            state: What `fit` gave.

        Returns:
            Sentences; mostly none.
        """

    def neighbours(self, state: State) -> Iterator[tuple[str, State]]:
        """The same fit at other settings, to see how much they matter.

        Args:
            state: What `fit` gave.

        Returns:
            Names ("0.1x", "10x") and states, one at a time: each may take as much memory as the fit itself.
        """
