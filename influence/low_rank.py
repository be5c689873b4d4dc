"""What curvatures of low rank have in common: H ~ V diag(e) V^T, its inverse, and what it leaves out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .blas import product
from .damping import Damping, checked, chosen_damping, each, single
from .errors import SolveError
from .gradients import Gradients
from .side import Side
from .solve import Eigen, Inversion, Negative
from .spectrum import Spectrum
from .work import ANY, Work

Complement = Literal["damping", "drop"]
PROBES, STEPS = 8, 3  # random vectors that what is left out is looked for with, and how often it is applied to them
NOTABLE = 0.1  # of the damping: a larger eigenvalue that is left out is told


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """The curvature outside the subspace, as random vectors see it."""

    norm: float
    """Its largest absolute eigenvalue, from below."""
    trace: float
    """The sum of its eigenvalues, a mean over few vectors."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRankState:
    """The eigenvectors that were found, and the train gradients."""

    eigen: Eigen
    left_out: LeftOut
    said: tuple[str, ...]
    """What to say of the decomposition at any damping."""
    rule: Inversion
    train: Gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank(ABC):
    """(H + damping I)^-1 with H ~ V diag(e) V^T: V diag(1 / (e + damping)) V^T, and 1 / damping outside V.

    There H is taken as zero. In memory lie 8 p rank bytes, three to four times over while they are found; nothing of size p x p
    or n (C - 1) x n (C - 1) is formed.
    """

    unit: ClassVar[str] = "nats per unit weight"

    rank: int = 100
    """Eigenvectors, at most p."""
    damping: Damping | Sequence[Damping] = "auto"
    """Added to every eigenvalue. "auto": three weight decays or a 1,000th of the largest eigenvalue (of a head the weight
    decay), or the largest eigenvalue that is left out, where the damping stands for it; whichever is more. Of a list `attribute`
    gives the scores of every entry, the first as the main ones, from one decomposition."""
    complement: Complement = "damping"
    """What inverts the part of a gradient outside the subspace: "damping" alone, or nothing ("drop")."""
    seed: int = 0
    """Of the random vectors."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"rank must be at least 1, got {self.rank}.")
        if self.complement not in ("damping", "drop"):
            raise UsageError(f"complement must be 'damping' or 'drop', got {self.complement!r}.")
        object.__setattr__(self, "damping", checked(self.damping, auto=True))
        for damping in each(self.damping):
            if not isinstance(damping, str):
                self._rule(damping)

    def _rule(self, damping: float) -> Inversion:
        if damping == 0 and self.complement == "damping":
            raise UsageError(
                "Outside the subspace of a low-rank curvature the damping is all there is to invert, and it is 0; give a "
                "damping > 0, or complement='drop' to leave that part of the gradients out."
            )
        return Inversion(damping=damping, negative=self._negative)

    @property
    def _negative(self) -> Negative:
        return "invert"

    @abstractmethod
    def _decompose(self, train: Side, work: Work) -> tuple[Eigen, LeftOut, tuple[str, ...]]:
        """Eigenvalues and vectors, what they leave out, and what to say about it."""

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": type(self).__name__, **asdict(self)}

    def fit(self, train: Side, *, like: LowRankState | None = None, work: Work = ANY) -> LowRankState:
        """Find the subspace and the curvature within it.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            Eigenvectors and train gradients.

        Raises:
            SolveError: The eigenvectors do not fit into memory.
        """
        if like is None:
            need, room = 32 * train.problem.p * min(self.rank, train.problem.p), work.room(train.logits.device)
            if need > room:
                raise SolveError(
                    f"{self.rank:,} vectors of {train.problem.p:,} parameters take {need / 2**30:.1f} GiB while they are found, "
                    f"and there are {room / 2**30:.1f}; lower the rank or analyse fewer parameters."
                )
            eigen, left_out, said = self._decompose(train, work)
            train_gradients = Gradients.of(train, work)
        else:
            eigen, left_out, said, train_gradients = like.eigen, like.left_out, like.said, like.train
        given = single(self.damping)
        damping = chosen_damping(given, float(eigen.lam[0]), train.problem.weight_decay, head=train.problem.linear)
        if given == "auto" and self.complement == "damping":  # which stands for the curvature that is left out
            damping = max(damping, left_out.norm)
        return LowRankState(eigen, left_out, said, self._rule(damping), train_gradients)

    def solve(self, state: LowRankState, queries: Side, rows: slice) -> Float[Tensor, "b p"]:
        """The inverse times the query gradients.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients [b, p] in the order of the train gradients, in the type of the problem.
        """
        V, inverse = state.eigen.V, state.eigen.inverse(state.rule)
        own = queries.gradients(rows)
        G = own.double()
        c = product(G, V)
        if self.complement == "drop":
            solved = product(c * inverse, V.T)
        else:
            solved = product(c * (inverse - 1 / state.rule.damping), V.T).add_(G, alpha=1 / state.rule.damping)
        return state.train.arranged(solved.to(own.dtype))

    def scores(
        self, state: LowRankState, solved: Float[Tensor, "b p"], train: Side, columns: slice
    ) -> Float[Tensor, "b c"]:
        """Solved queries against a block of train gradients.

        Args:
            state: What `fit` gave.
            solved: What `solve` gave.
            train: The train set.
            columns: The block.

        Returns:
            Scores [b, c], nats per unit weight.
        """
        return state.train.times(solved, columns)

    def spectrum(self, state: LowRankState) -> Spectrum:
        """Facts of the eigenvalues that were found.

        Args:
            state: What `fit` gave.

        Returns:
            The facts; the share of the trace and the curvature that is left out are estimates.
        """
        facts = state.eigen.spectrum(state.rule)
        held = float(state.eigen.lam.abs().sum())
        whole = held + state.left_out.trace  # NaN where what is left out may have both signs
        return replace(
            facts,
            trace_kept=facts.trace_kept if whole == 0 else facts.trace_kept * min(held / whole, 1.0),
            left_out=state.left_out.norm,
        )

    def warnings(self, state: LowRankState) -> list[str]:
        """What a user must know about this inverse.

        Args:
            state: What `fit` gave.

        Returns:
            Sentences.
        """
        norm, damping = state.left_out.norm, state.rule.damping
        said = [*state.said]
        if self.complement == "damping" and norm > NOTABLE * damping:
            said.append(
                f"{type(self).__name__} with {len(state.eigen.lam)} eigenvectors leaves out a curvature of up to about "
                f"{norm:.2g}, {norm / damping:.2g} times the damping: along it scores are up to {1 + norm / damping:.2g} "
                "times too large. Raise the rank or the damping."
            )
        return said

    def neighbours(self, state: LowRankState) -> Iterator[tuple[str, LowRankState]]:
        """The same decomposition at a tenth and at ten times the damping or cutoff.

        Args:
            state: What `fit` gave.

        Returns:
            Two states; one, where a tenth of the damping no longer lifts the spectrum above zero.
        """
        cutoff, lowest = state.eigen.cutoff(state.rule), float(state.eigen.lam[-1])
        rules = {f"{factor:g}x": state.rule.scaled(factor, cutoff) for factor in (0.1, 10.0)}
        sound = {k: r for k, r in rules.items() if r.damping == 0 or r.negative == "drop" or lowest + r.damping > 0}
        return ((name, replace(state, rule=rule)) for name, rule in sound.items())


def look_outside(
    operator: Callable[[Tensor], Tensor], lam: Float[Tensor, " k"], V: Float[Tensor, "p k"], generator: torch.Generator
) -> LeftOut:
    """What a decomposition leaves out, by a few power steps on random vectors.

    Args:
        operator: Vectors to vectors: H.
        lam: Eigenvalues that were found.
        V: Their vectors, orthonormal.
        generator: Of the random vectors.

    Returns:
        Norm and trace of H - V diag(lam) V^T.
    """
    p, k = V.shape
    if k == p:
        return LeftOut(0.0, 0.0)
    X = gaussian(p, min(PROBES, p), generator, V.device)
    trace = norm = 0.0
    for step in range(STEPS):
        X = X if step == 0 else torch.linalg.qr(X).Q
        Y = operator(X) - product(V, lam[:, None] * product(V.T, X))
        if step == 0:
            trace = float((X * Y).sum()) / X.shape[1]
        else:
            norm = float(torch.linalg.matrix_norm(Y, 2))
        X = Y
    return LeftOut(norm, trace)


def gaussian(p: int, b: int, generator: torch.Generator, device: torch.device) -> Float[Tensor, "p b"]:
    """Random vectors, the same on every device.

    Args:
        p: Their length.
        b: Their number.
        generator: On the CPU.
        device: Where they go.

    Returns:
        Standard normal numbers, float64.
    """
    return torch.randn(p, b, generator=generator, dtype=torch.float64).to(device)
