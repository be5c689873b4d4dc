"""Feature distance minimisation (Chen et al., CARTL): a robust source whose first blocks are robust by themselves."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def feature_shift(attacked: Float[Tensor, "b ..."], clean: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """How far an attack moves features: the batch sum of the Euclidean lengths, over the root of the number of features.

    Args:
        attacked: Features of the attacked images.
        clean: Features of the images themselves.

    Returns:
        The distance; a sum over the images, not a mean.
    """
    moved = (attacked - clean).flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(moved, dim=1)
    return lengths.sum() / math.sqrt(moved.shape[1])
