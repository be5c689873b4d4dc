"""The true Hessian of any chosen parameters, assembled by autograd batch by batch, and its spectral pseudo-inverse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .damping import checked, each, single
from .errors import SolveError
from .gradients import Gradients
from .problem import Problem
from .products import hessian_products, tangents_at_once
from .side import Side
from .solve import EVD_LIMIT, Eigen, Inversion, Negative, eigendecompose
from .spectrum import Spectrum
from .work import ANY, Work


@dataclass(frozen=True, slots=True, eq=False)
class HessianState:
    """The decomposed Hessian and the train gradients."""

    eigen: Eigen
    rule: Inversion
    train: Gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Hessian:
    """Mean Hessian of the loss over the train set, H = (1/n) sum_i d2 l_i / d theta2, for any differentiable loss.

    Dense: p parameters take 8 p^2 bytes, some four times over, so p up to about 20,000. Outside a convex head it may be
    indefinite; the spectrum reports its negative part. The sum of batch means that the code of Utrera et al. inverts is n / b
    times this H for batches of b: `Hessian(absolute=1e-20 * b / n)` and scores times b / n give their numbers.
    """

    unit: ClassVar[str] = "nats per unit weight"

    damping: float | Sequence[float] = 0.0
    """Added to every eigenvalue; must lift the smallest above zero. Of a list `attribute` gives the scores of every entry, the
    first as the main ones."""
    rcond: float | None = None
    """Cutoff relative to the largest absolute eigenvalue; None: size times rounding unit, and none when damped."""
    absolute: float | None = None
    """Cutoff in the unit of the Hessian, instead of a relative one."""
    negative: Negative = "invert"
    """Negative eigenvalues beyond the cutoff: "invert", as the Moore-Penrose inverse does, or "drop"."""
    batch_size: int | None = None
    """Examples in one assembly step; None: as `attribute` reads them. Any number gives the same H."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", checked(self.damping))
        for damping in each(self.damping):
            self._rule(damping)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options; the batch size changes no number and is left out.
        """
        options = asdict(self)
        del options["batch_size"]
        return {"name": "Hessian", **options}

    def fit(self, train: Side, *, like: HessianState | None = None, work: Work = ANY) -> HessianState:
        """Assemble the mean Hessian and decompose it.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            Its eigendecomposition and the train gradients.

        Raises:
            SolveError: p is too large for a dense Hessian.
        """
        rule = self._rule(single(self.damping))
        if like is not None:
            return replace(like, rule=rule)
        p = train.problem.p
        if p > EVD_LIMIT:
            raise SolveError(
                f"A dense Hessian of {p:,} parameters would take {8 * p * p / 2**30:,.0f} GiB, four times over; at most "
                f"{EVD_LIMIT:,} are possible and about 20,000 sensible. Analyse fewer `parameters`, or use GaussNewton()."
            )
        H = assemble_hessian(train, self.batch_size or train.batch_size)
        eps = torch.finfo(torch.float64 if train.problem.linear else train.problem.dtype).eps
        return HessianState(eigendecompose(H, eps), rule, Gradients.of(train, work))

    def solve(self, state: HessianState, queries: Side, rows: slice) -> Float[Tensor, "b p"]:
        """H^+ times the query gradients.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients [b, p] in the order of the train gradients, float64.
        """
        V = state.eigen.V
        G = queries.gradients(rows).double()
        return state.train.arranged(((G @ V) * state.eigen.inverse(state.rule)) @ V.T)

    def scores(
        self, state: HessianState, solved: Float[Tensor, "b p"], train: Side, columns: slice
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

    def spectrum(self, state: HessianState) -> Spectrum:
        """Facts of the Hessian, its negative part included.

        Args:
            state: What `fit` gave.

        Returns:
            The facts.
        """
        return state.eigen.spectrum(state.rule)

    def warnings(self, state: HessianState) -> list[str]:
        """There is nothing to warn of that the spectrum does not show.

        Args:
            state: What `fit` gave.

        Returns:
            An empty list.
        """
        return []

    def neighbours(self, state: HessianState) -> Iterator[tuple[str, HessianState]]:
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

    def _rule(self, damping: float) -> Inversion:
        return Inversion(damping=damping, rcond=self.rcond, absolute=self.absolute, negative=self.negative)


def assemble_hessian(train: Side, batch_size: int) -> Float[Tensor, "p p"]:
    """The mean Hessian, batch by batch: forward-mode over reverse-mode, many tangents at a time.

    Args:
        train: The train set, examined.
        batch_size: Examples in one step; sums, not means, are added up, so that any size gives the same matrix.

    Returns:
        H, accumulated in float64.
    """
    p, chunk = train.problem.p, tangents_at_once(train.problem, batch_size)
    H = torch.zeros(p, p, dtype=torch.float64, device=train.logits.device)
    for begin in range(0, len(train), batch_size):
        examples = slice(begin, min(begin + batch_size, len(train)))
        z, y = train.inputs(examples), train.target[examples]
        for first in range(0, p, chunk):
            rows = slice(first, min(first + chunk, p))
            H[rows] += hessian_rows(train.problem, z, y, rows)
    return H / len(train)


def hessian_rows(problem: Problem, z: Tensor, y: Tensor, rows: slice) -> Float[Tensor, "r p"]:
    """Some rows of the sum of the Hessians of some examples.

    Args:
        problem: The analysed function.
        z: Features (linear problem) or inputs of the examples.
        y: Their labels.
        rows: Which parameters, by their place in theta.

    Returns:
        The rows, in the type that the problem computes in.
    """
    at = torch.arange(rows.stop - rows.start, device=z.device)
    dtype = torch.float64 if problem.linear else problem.dtype
    tangents = torch.zeros(len(at), problem.p, dtype=dtype, device=z.device)
    tangents[at, rows.start + at] = 1
    return hessian_products(problem, z, y, tangents)
