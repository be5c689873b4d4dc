"""How far scores are off that rest on rows multiplied in tf32 or bf16: measured against the same rows in their own precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from .damped import Cholesky
from .errors import SolveError
from .examples import spread
from .gram import pulled_back, pushed
from .newton import NewtonMatrix

SAMPLE = 16  # train examples that serve as queries
RTOL, STEPS = 1e-5, 20  # of the refinement: relative residual to reach, and steps to take at most


@dataclass(frozen=True, slots=True)
class ScoreError:
    """What reduced precision did to a sample of scores."""

    precision: str
    queries: int
    largest: float
    """Largest error of a score, relative to the query's largest score."""
    correlation: float
    """Spearman correlation with the scores in full precision, mean over the queries."""

    def sentence(self) -> str:
        """For a report.

        Returns:
            What was measured.
        """
        return (
            f"Rows were multiplied in {self.precision}: with {self.queries} train examples as queries the largest score error is "
            f"{self.largest:.1e} of a query's largest score, and the rank correlation with the scores in full precision is "
            f"{self.correlation:.5f} on average."
        )


def measure_error(base: NewtonMatrix, factor: Cholesky | None, precision: str) -> ScoreError:
    """Scores of some train examples as they come out, and refined with the exact matrix, which is applied and never formed.

    Args:
        base: The matrix in reduced precision, dual.
        factor: Its factor.
        precision: What it is called.

    Returns:
        Their distance.

    Raises:
        SolveError: The refinement does not converge: the rounding is as large as the damping.
    """
    assert factor is not None and base.factor.weights is not None  # refused by GaussNewton
    examples = torch.cat([torch.arange(s.start, s.stop) for s in spread(base.n, SAMPLE, 1)])
    W = torch.zeros(base.size, len(examples), dtype=torch.float64, device=base.matrix.device)
    for column, i in enumerate(examples.tolist()):
        W[base.rows.span(slice(i, i + 1)), column] = base.n**0.5 * base.factor.weights[i]
    columns = [base.train_columns(slice(i, i + 1)) for i in examples.tolist()]
    X = factor.solve(torch.cat(columns, dim=1))
    rough = _scores(base, X)
    M = _exactly(base, W)
    for _ in range(STEPS):
        rest = M - _exactly(base, X) - factor.damping * X
        left = float((rest.norm(dim=0) / M.norm(dim=0).clamp(min=1e-300)).max())
        if left <= RTOL:
            break
        X = X + factor.solve(rest)
    else:
        raise SolveError(
            f"{precision} is too coarse for a damping of {factor.damping:.3g}: against the exact matrix the solutions keep a "
            f"relative residual of {left:.1e}; raise the damping, or take precision='float32'."
        )
    fine = _scores(base, X)
    error = (rough - fine).abs().amax(1) / fine.abs().amax(1).clamp(min=1e-300)
    ranks = [float(spearmanr(a.cpu(), b.cpu()).statistic) for a, b in zip(rough, fine, strict=True)]
    return ScoreError(precision, len(examples), float(error.max()), sum(ranks) / len(ranks))


def _exactly(base: NewtonMatrix, X: Tensor) -> Tensor:
    return pushed(base.rows, pulled_back(base.rows, X))


def _scores(base: NewtonMatrix, X: Tensor) -> Tensor:
    assert base.factor.weights is not None
    scores: Tensor = base.n**0.5 * torch.einsum("nr,nrb->bn", base.factor.weights, X.view(base.n, base.R, -1))
    return scores
