"""What K-FAC and EK-FAC share: everything but the eigenvalues."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .damping import Damping, check_positive, checked, single
from .factors import KINDS, Rows, make_factor
from .gradients import Gradients
from .kronecker import KroneckerMatrix, Others
from .kronecker_fit import Kind, fit_kronecker
from .side import Side
from .solve import Eigen, Inversion
from .spectrum import Spectrum
from .work import ANY, Work

MEAN_SHARE = 10  # damping="auto" is the mean eigenvalue over this
SHOWN = 100_000  # eigenvalues up to which all of them are kept with the scores


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerState:
    """An approximate curvature with a damping."""

    matrix: KroneckerMatrix
    damping: float
    train: Gradients
    """In the coordinates of the matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KroneckerCurvature(ABC):
    """A block for each layer, diagonal in the bases of its Kronecker factors."""

    unit: ClassVar[str] = "nats per unit weight"

    damping: Damping | Sequence[Damping] = "auto"
    """Added to every eigenvalue of every block, positive; "auto": a tenth of the mean eigenvalue (Grosse et al. 2023,
    arXiv:2308.03296): blocks that leave out what layers share want less than the exact matrix. Of a list `attribute` gives the
    scores of every entry, the first as the main ones."""
    rows: Rows = "logits"
    """Whose products the factors are made from: "logits" (the exact mean over the network's own labels), "margin", "trak",
    "label" (the empirical Fisher), or "sampled" (labels drawn from the network)."""
    others: Others = "dense"
    """Parameters of no Linear or Conv2d: "dense", the exact block of each layer; "diagonal", one by one; "skip", left out."""
    samples: int = 1
    """Draws an example, for rows="sampled"."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise UsageError(f"rows must be one of {', '.join(KINDS)}, got {self.rows!r}.")
        if self.others not in ("dense", "diagonal", "skip"):
            raise UsageError(f"others must be 'dense', 'diagonal' or 'skip', got {self.others!r}.")
        if self.samples < 1:
            raise UsageError(f"samples must be at least 1, got {self.samples}.")
        object.__setattr__(self, "damping", checked(self.damping, auto=True))
        check_positive(self.damping, type(self).__name__)

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Where the eigenvalues come from."""

    def settings(self) -> dict[str, Any]:
        """What tells two fits apart.

        Returns:
            Name and options.
        """
        return {"name": type(self).__name__, **asdict(self)}

    def fit(self, train: Side, *, like: KroneckerState | None = None, work: Work = ANY) -> KroneckerState:
        """Form and decompose the factors.

        Args:
            train: The train set, examined.
            like: What the same curvature gave for the same train set at another damping: all that does not depend on it is
                taken over.
            work: Memory, keeper of tiles, whom to tell.

        Returns:
            Everything that scoring needs.

        Raises:
            UsageError: The loss is not cross-entropy.
        """
        if train.problem.loss is not None:
            raise UsageError(
                f"{type(self).__name__} factors the Fisher matrix of cross-entropy; with another loss use Hessian()."
            )
        if like is None:
            factor = make_factor(self.rows, train.logits, train.target, samples=self.samples, seed=self.seed)
            matrix = fit_kronecker(train, factor, self.kind, self.others, work)
            gradients = matrix.train_gradients(work)
        else:
            matrix, gradients = like.matrix, like.train
        given = single(self.damping)
        damping = float(matrix.lam.mean()) / MEAN_SHARE if given == "auto" else float(given)
        return KroneckerState(matrix, damping, gradients)

    def solve(self, state: KroneckerState, queries: Side, rows: slice) -> Float[Tensor, "b k"]:
        """Query gradients in the bases of the blocks, over the damped eigenvalues.

        Args:
            state: What `fit` gave.
            queries: The side that the block belongs to.
            rows: The block.

        Returns:
            H^+ g in these coordinates [b, k], in the order of the train gradients.
        """
        G = state.matrix.gradients(queries, rows)
        return state.train.arranged(G.div_((state.matrix.lam + state.damping).to(G.dtype)))

    def scores(
        self, state: KroneckerState, solved: Float[Tensor, "b k"], train: Side, columns: slice
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

    def spectrum(self, state: KroneckerState) -> Spectrum:
        """Facts of the approximate curvature; all of its eigenvalues are known.

        Args:
            state: What `fit` gave.

        Returns:
            The facts; of more than 100,000 eigenvalues without the list of them.
        """
        lam = state.matrix.lam.sort(descending=True).values
        eps = torch.finfo(torch.float64).eps
        found = Eigen(lam, lam.new_empty(0, 0), eps).spectrum(Inversion(damping=state.damping))
        return found if len(lam) <= SHOWN else replace(found, eigenvalues=None)

    def warnings(self, state: KroneckerState) -> list[str]:
        """What was left out or approximated further.

        Args:
            state: What `fit` gave.

        Returns:
            Sentences.
        """
        said = []
        if state.matrix.left_out:
            said.append(f"These parameters have no part in the scores: {', '.join(state.matrix.left_out)}.")
        if state.matrix.diagonal:
            said.append(f"Of these layers the curvature is taken as diagonal: {', '.join(state.matrix.diagonal)}.")
        return said

    def neighbours(self, state: KroneckerState) -> Iterator[tuple[str, KroneckerState]]:
        """The same factors at a tenth and at ten times the damping.

        Args:
            state: What `fit` gave.

        Returns:
            Names and states.
        """
        return ((f"{factor:g}x", replace(state, damping=state.damping * factor)) for factor in (0.1, 10.0))
