"""What a class-match rate must be held against: scores that see the label, or the features, but no influence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .examples import Examples
from .head import fit_head, score_head, solve_head
from .ranking import ScoreRows
from .rows import residuals
from .solve import Inversion

RANDOM_HEAD_SEED = 0


def baseline_scores(
    queries: Examples, train: Examples, target: NDArray[np.int64], inversion: Inversion, *, bias: bool = True
) -> dict[str, ScoreRows]:
    """Scores to compare a class-match rate with, as far as what is known of the examples allows.

    Args:
        queries: The queries.
        train: The train set.
        target: The label that the loss of each query is taken at [m].
        inversion: Damping and cutoff of the random head's curvature.
        bias: Whether the head has one.

    Returns:
        By name: "residual" r_t . r_i (the label and the confidence, no features); "cosine" of the features (no label at all);
        "gradient" the product of both, the dot product of the head's gradients; "random_head" the influence score of a
        freshly initialised head on the same features.
    """
    out: dict[str, ScoreRows] = {}
    if queries.residual is not None and train.residual is not None:
        R_t = queries.residual.copy()
        moved = np.flatnonzero(target != queries.label)
        R_t[moved, queries.label[moved]] += 1  # softmax minus the one-hot of another label
        R_t[moved, target[moved]] -= 1
        R_i = train.residual
        out["residual"] = lambda rows: R_t[rows] @ R_i.T
        if queries.features is not None and train.features is not None:
            f_t, f_i = queries.features.astype(np.float64), train.features.astype(np.float64)
            u_t, u_i = _unit(f_t), _unit(f_i)
            out["cosine"] = lambda rows: u_t[rows] @ u_i.T
            f_t, f_i = (np.c_[f, np.ones(len(f))] if bias else f for f in (f_t, f_i))
            out["gradient"] = lambda rows: (R_t[rows] @ R_i.T) * (f_t[rows] @ f_i.T)
            out["random_head"] = _random_head(f_t, target, f_i, train.label, R_i.shape[1], inversion, bias=bias)
    return out


def chance(queries: Examples, train: Examples, wanted: NDArray[np.int64], *, on_itself: bool) -> float:
    """Expected share of matches for a random order of the train set.

    Args:
        queries: The queries.
        train: The train set.
        wanted: The class that counts as a match, for every query.
        on_itself: The queries are the train set, so the example itself is left out.

    Returns:
        The mean over queries of the share of other train examples with the wanted class.
    """
    counts = np.bincount(train.label, minlength=int(max(train.label.max(), wanted.max())) + 1)
    if not on_itself:
        return float(counts[wanted].mean() / len(train))
    return float((counts[wanted] - (train.label == wanted)).mean() / max(len(train) - 1, 1))


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit


def _random_head(
    f_t: NDArray[Any],
    y_t: NDArray[Any],
    f_i: NDArray[Any],
    y_i: NDArray[Any],
    C: int,
    inversion: Inversion,
    *,
    bias: bool,
) -> ScoreRows:
    """Influence scores of a head with torch's default initialisation."""
    generator = torch.Generator().manual_seed(RANDOM_HEAD_SEED)
    bound = (f_i.shape[1] - bias) ** -0.5
    W = (torch.rand(C, f_i.shape[1], generator=generator, dtype=torch.float64) * 2 - 1) * bound
    phi_t, phi_i = torch.from_numpy(f_t), torch.from_numpy(f_i)
    logits = phi_i @ W.T
    state = fit_head(phi_i, logits, residuals(logits, torch.from_numpy(y_i)), inversion, torch.float32)
    r_t = residuals(phi_t @ W.T, torch.from_numpy(y_t))

    def scores(rows: slice) -> NDArray[Any]:
        solved = solve_head(state, phi_t[rows], r_t[rows])
        return score_head(state, solved, slice(0, len(phi_i))).numpy()

    return scores
