"""Learning without forgetting (Shafahi et al.): features that stay near those of the robust source."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def feature_distance(student: Float[Tensor, "b d"], source: Float[Tensor, "b d"], kind: str) -> Float[Tensor, ""]:
    """How far features have moved from those of the source, averaged over the batch.

    Args:
        student: Penultimate features of the network that is trained.
        source: Those of the source, for the same images.
        kind: mean_abs (mean absolute difference, as in the authors' code) or l2 (Euclidean length, as in later slides).

    Returns:
        The distance; zero where nothing has moved.
    """
    moved = student - source
    if kind == "mean_abs":
        return moved.abs().mean()
    lengths: Tensor = torch.linalg.vector_norm(moved, dim=1)
    return lengths.mean()
