"""Trained blocks that begin anew (Shafahi et al. re-train blocks like this), behind frozen ones that are the source's."""

from __future__ import annotations

from collections.abc import Callable

from .device import seeded
from .transfer import Split
from .zoo import Classifier


def renew_blocks(model: Classifier, parts: Split, cut: Callable[[Classifier], Split], seed: int) -> None:
    """Give the trained part, but for its head, the weights and statistics that its architecture is born with.

    Args:
        model: The network; changed in place.
        parts: How it is cut.
        cut: Cuts another network of this architecture alike.
        seed: Decides the weights; they are the same for every source of this architecture.
    """
    with seeded("fresh blocks", seed):
        born = Classifier(model.spec)
    parts.features.load_state_dict(cut(born).features.state_dict())
