"""How much damping or cutoff matter: what other values of them do to the nearest neighbours of a sample of queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .examples import spread
from .ranking import largest_columns
from .side import Side

if TYPE_CHECKING:
    from .attribute import Prepared, Variant

SAMPLE, RUN = 128, 32  # queries whose neighbours are compared at other dampings, in evenly spread runs


def sensitivity(prepared: Prepared, variant: Variant, state: Any) -> dict[str, float]:
    """How many first and first five neighbours of a sample of queries move at other dampings or cutoffs.

    Args:
        prepared: Both sides.
        variant: What they are scored with.
        state: Its fit.

    Returns:
        For every neighbouring fit and k of 1 and 5 the share of neighbours that change, as `top5_changed_at_0.1x`.
    """
    on_itself = prepared.queries is None
    k = min(5, len(prepared.train) - on_itself)
    if k < 1:
        return {}
    side = prepared.side("queries", variant.query_label)
    blocks = spread(len(side), SAMPLE, RUN)

    def first(state: Any) -> NDArray[np.int64]:
        return np.concatenate([_first(prepared, variant, state, side, rows, k) for rows in blocks])

    base = None
    out = {}
    for name, other in variant.curvature.neighbours(state):
        base = first(state) if base is None else base
        there = base if other is state else first(other)
        kept = (base[:, :, None] == there[:, None, :]).any(2)
        out[f"top1_changed_at_{name}"] = float((base[:, 0] != there[:, 0]).mean())
        out[f"top5_changed_at_{name}"] = float(1 - kept.mean())
    return out


def _first(prepared: Prepared, variant: Variant, state: Any, side: Side, rows: slice, k: int) -> NDArray[np.int64]:
    """The k largest columns of some rows."""
    solved = variant.curvature.solve(state, side, rows)
    tile = variant.curvature.scores(state, solved, prepared.train, slice(0, len(prepared.train)))
    scores: NDArray[Any] = tile.cpu().numpy()
    if prepared.queries is None:
        scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = -np.inf
    return largest_columns(scores, k)
