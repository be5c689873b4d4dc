"""Scores without a curvature: the plain dot product, or the cosine, of two gradients, at one or several points of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .along import Along, points, weights_digest
from .gradients import Gradients
from .replay import Training
from .side import Side
from .work import ANY, Work

State = Gradients | Along
ALONG_SIGN = (
    "+ sum over checkpoints of rate g_query^T g_train; positive = helpful: removing the example raises the query's loss by about "
    "score / n"
)
DOT_SIGN = "+ g_query^T g_train; positive = helpful: a gradient step on the example lowers the query's loss"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GradientDot:
    """score[t, i] = + g_t . g_i; with checkpoints sum_c rate_c g_t(theta_c) . g_i(theta_c): TracIn (Pruthi et al. 2020).

    The unit of the plain product is squared nats per squared unit of parameter; a cosine has none. With checkpoints a score is in
    nats per unit weight, where each rate is the sum of the learning rates of the steps that its checkpoint stands for (over
    1 - momentum): leaving example i out of the training then raises the loss of t by about score / n.
    """

    cosine: bool = False
    """Divide by the lengths of the two gradients; an example whose gradient is zero scores zero."""
    checkpoints: Sequence[Mapping[str, Tensor]] = ()
    """State dicts of the model on its way; none: its finished weights alone. `GradientDot.along` replays a training for them."""
    rates: Sequence[float] = ()
    """One a checkpoint."""

    def __post_init__(self) -> None:
        if len(self.checkpoints) != len(self.rates):
            raise UsageError(
                f"There are {len(self.checkpoints)} checkpoints and {len(self.rates)} rates; give one rate a checkpoint."
            )
        if self.cosine and self.checkpoints:
            raise UsageError("The cosine is taken at the finished weights alone; leave checkpoints out.")
        for rate in self.rates:
            if not 0 <= rate < float("inf"):  # catches NaN too
                raise UsageError(f"A rate is {rate}; give finite numbers >= 0.")

    @classmethod
    def along(cls, recording: Training, every: int = 1) -> GradientDot:
        """TracIn over a recorded training, run again on the CPU.

        Args:
            recording: The training: `upweight.Recording`, or `upweight.open_recording(run)`.
            every: Stretches (epochs of a run) that one checkpoint stands for; it lies in the middle of their steps.

        Returns:
            With checkpoints, and sums of learning rates over 1 - momentum.
        """
        checkpoints, rates = points(recording, every)
        return cls(checkpoints=checkpoints, rates=rates)

    @property
    def unit(self) -> str:
        """Unit of a score."""
        if self.checkpoints:
            return "nats per unit weight"
        return "none (a cosine)" if self.cosine else "squared nats per squared unit of parameter"

    @property
    def sign(self) -> str:
        """What a positive score means."""
        return ALONG_SIGN if self.checkpoints else DOT_SIGN

    @property
    def anywhere(self) -> bool:
        """Whether it needs no optimum."""
        return bool(self.checkpoints)

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options; checkpoints by their digests.
        """
        told: dict[str, Any] = {"name": "GradientDot", "cosine": self.cosine}
        if self.checkpoints:
            told |= {"checkpoints": [weights_digest(one) for one in self.checkpoints], "rates": list(self.rates)}
        return told

    def fit(self, train: Side, *, like: State | None = None, work: Work = ANY) -> State:
        """Prepare to read the train gradients, or run the train set at every checkpoint.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            The gradients, or the sides.
        """
        if like is not None:
            return like
        if self.checkpoints:
            return Along.of(train, tuple(self.checkpoints), tuple(self.rates), work)
        return Gradients.of(train, work)

    def solve(self, state: State, queries: Side, rows: slice) -> Float[Tensor, "b k"]:
        """The query gradients themselves; with checkpoints the scores.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Gradients in parts [b, k], of unit length for the cosine; with checkpoints scores [b, n].
        """
        if isinstance(state, Along):
            return state.scores(queries, rows)
        return Gradients.of(queries, keep=False).packed(rows, unit=self.cosine)

    def scores(self, state: State, solved: Float[Tensor, "b k"], train: Side, columns: slice) -> Float[Tensor, "b c"]:
        """Dot products with a block of train gradients.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c].
        """
        if isinstance(state, Along):
            return solved[:, columns]
        return state.dots(solved, columns, unit=self.cosine)

    def spectrum(self, state: State) -> None:
        """There is no curvature.

        Args:
            state: What `fit` gave.
        """

    def warnings(self, state: State) -> list[str]:
        """There is no inverse to warn of.

        Args:
            state: What `fit` gave.

        Returns:
            An empty list.
        """
        return []

    def neighbours(self, state: State) -> Iterator[tuple[str, State]]:
        """There is nothing to vary.

        Args:
            state: What `fit` gave.

        Returns:
            None.
        """
        return iter(())
