"""The exact inverse without a matrix: a linear system for each query, solved by products with the curvature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .damped import STEPS, WIDTH, largest_eigenvalue
from .damping import Damping, check_positive, checked, chosen_damping, each, single
from .gradients import Gradients
from .kronecker import KroneckerMatrix
from .krylov import conjugate_gradients
from .preconditioners import PRECONDITIONERS, Precondition, Sketch, fit_preconditioner
from .products import Kind
from .row_products import Operator, mean_products
from .side import Side
from .spectrum import Spectrum
from .work import ANY, Work

BLOCK_BYTES = 2**28  # of one of the five matrices that a block of systems takes
COLUMNS, SWEEPS = 128, 20  # systems and steps that the way to multiply is chosen for


@dataclass(slots=True)
class Taken:
    """What the systems that were solved so far took."""

    systems: int = 0
    steps: int = 0
    """Of the longest."""
    residual: float = 0.0
    """The largest, relative."""


@dataclass(frozen=True, slots=True, eq=False)
class ConjugateState:
    """Products with the curvature, a preconditioner, and the train gradients."""

    products: Operator
    preconditioner: KroneckerMatrix | Sketch | None
    train: Gradients
    lambda_max: float
    damping: float
    taken: Taken = field(default_factory=Taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConjugateGradient:
    """Scores of the exact damped inverse, (H + damping I)^-1, by preconditioned conjugate gradients.

    Nothing of p x p or n x n is formed. All queries of a block iterate together, each with its own steps, until the residual of
    its solution is `rtol` of its gradient; a score is then off by at most rtol |g_t| |g_i| / damping. A system that does not
    get there is an error, never a score.
    """

    unit: ClassVar[str] = "nats per unit weight"

    damping: Damping | Sequence[Damping] = "auto"
    """Added to every eigenvalue, positive; "auto", for the Gauss-Newton matrix: three weight decays or a 1,000th of the largest
    eigenvalue, whichever is more; of a head the weight decay. Of a list `attribute` gives the scores of every entry, the first as
    the main ones."""
    rtol: float = 1e-6
    """Residual to reach, relative to the query's gradient."""
    max_steps: int = 1_000
    """Steps of any system."""
    curvature: Kind = "ggn"
    """"ggn", the Gauss-Newton matrix, or "hessian", which a damping must make positive; of any loss."""
    precondition: Precondition = "nystroem"
    """What makes the steps few: "nystroem", the leading part of the Gauss-Newton matrix from `rank` products with it; "ekfac" or
    "diagonal", which need few products but leave more steps; or "none"."""
    rank: int = 100
    """Directions of the preconditioner "nystroem"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", checked(self.damping, auto=True))
        check_positive(self.damping, "ConjugateGradient")
        if not 0 < self.rtol < 1:  # catches NaN too
            raise UsageError(f"rtol must lie between 0 and 1, got {self.rtol}.")
        if self.max_steps < 1:
            raise UsageError(f"max_steps must be at least 1, got {self.max_steps}.")
        if self.rank < 1:
            raise UsageError(f"rank must be at least 1, got {self.rank}.")
        if self.curvature not in ("ggn", "hessian"):
            raise UsageError(f"curvature must be 'ggn' or 'hessian', got {self.curvature!r}.")
        if self.precondition not in PRECONDITIONERS:
            raise UsageError(f"precondition must be one of {', '.join(PRECONDITIONERS)}, got {self.precondition!r}.")
        if self.curvature == "hessian" and "auto" in each(self.damping):
            raise UsageError("The damping 'auto' is a rule for the Gauss-Newton matrix; give the Hessian a number.")

    def _damping(self, train: Side, lambda_max: float) -> float:
        problem = train.problem
        return chosen_damping(single(self.damping), lambda_max, problem.weight_decay, head=problem.linear)

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": "ConjugateGradient", **asdict(self)}

    def fit(self, train: Side, *, like: ConjugateState | None = None, work: Work = ANY) -> ConjugateState:
        """Prepare products and preconditioner, form the train gradients, and find the largest eigenvalue.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            Everything that solving needs.

        Raises:
            UsageError: The preconditioner, or the Gauss-Newton matrix, does not know the loss.
        """
        if like is not None:
            damping = self._damping(train, like.lambda_max)
            return replace(like, damping=damping, taken=Taken())
        if self.precondition != "none" and train.problem.loss is not None:
            raise UsageError(
                f"The preconditioner {self.precondition} is made for cross-entropy; with another loss take precondition='none'."
            )
        products = mean_products(train, self.curvature, columns=COLUMNS, sweeps=SWEEPS, work=work)
        ggn = products if self.curvature == "ggn" else None
        preconditioner = fit_preconditioner(train, self.precondition, self.rank, work, ggn)
        p, device = train.problem.p, train.logits.device
        steps = max(2, min(STEPS, work.budget(device) // (32 * WIDTH * p)))  # basis and images, float64
        lambda_max = largest_eigenvalue(products, p, device, steps=steps)
        damping = self._damping(train, lambda_max)
        return ConjugateState(products, preconditioner, Gradients.of(train, work), lambda_max, damping)

    def solve(self, state: ConjugateState, queries: Side, rows: slice) -> Float[Tensor, "b p"]:
        """H^+ g for a block of queries.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            Solved gradients [b, p] in the order of the train gradients.
        """
        side = state.train.side
        step = max(1, BLOCK_BYTES // (8 * side.problem.p))
        parts = []
        for at in range(rows.start, rows.stop, step):
            part = slice(at, min(at + step, rows.stop))
            G = queries.gradients(part)
            found = conjugate_gradients(
                partial(_damped, state), G.double(), partial(_inverse, state), rtol=self.rtol, max_steps=self.max_steps
            )
            state.taken.systems += len(G)
            state.taken.steps = max(state.taken.steps, found.steps)
            state.taken.residual = max(state.taken.residual, found.residual)
            parts.append(found.X.to(G.dtype))
        return state.train.arranged(torch.cat(parts))

    def scores(
        self, state: ConjugateState, solved: Float[Tensor, "b p"], train: Side, columns: slice
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

    def spectrum(self, state: ConjugateState) -> Spectrum:
        """What is known of the curvature: its largest eigenvalue, and of the Gauss-Newton matrix that none is negative.

        Args:
            state: What `fit` gave.

        Returns:
            The facts; NaN where nothing is known.
        """
        p, unknown = state.train.side.problem.p, float("nan")
        lowest = 0.0 if self.curvature == "ggn" else unknown
        return Spectrum(
            size=p,
            rank=p,
            cutoff=0.0,
            damping=state.damping,
            lambda_max=state.lambda_max,
            lambda_min=lowest,
            smallest_kept=lowest + state.damping,
            condition=(state.lambda_max + state.damping) / (lowest + state.damping),
            trace_kept=1.0,
            negative=0,
            negative_trace=lowest,
        )

    def warnings(self, state: ConjugateState) -> list[str]:
        """What the systems took.

        Args:
            state: What `fit` gave.

        Returns:
            A sentence, once there are any.
        """
        if not state.taken.systems:
            return []
        taken = state.taken
        return [
            f"Conjugate gradients solved {taken.systems:,} systems in at most {taken.steps} steps, to relative residuals of at "
            f"most {taken.residual:.1e}."
        ]

    def neighbours(self, state: ConjugateState) -> Iterator[tuple[str, ConjugateState]]:
        """None: every query would be solved twice more.

        Args:
            state: What `fit` gave.

        Returns:
            Nothing.
        """
        return iter(())


def _damped(state: ConjugateState, X: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
    return state.products(X.T).T + state.damping * X


def _inverse(state: ConjugateState, X: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
    return X if state.preconditioner is None else state.preconditioner.inverse(X, state.damping)
