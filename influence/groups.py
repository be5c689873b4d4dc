"""Values of sets of train examples with the interaction inside each set, from a fitted curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from .. import UsageError
from .attribute import Fitted
from .curvature import Curvature
from .interaction import Interacting, Interaction
from .kept import KeptCurvature
from .sums import positions
from .truth import Truth

ANSWER_BYTES = 2**28  # of answers in flight


def keep_curvature(fitted: Fitted) -> KeptCurvature:
    """Keep what groups of examples need of a fit.

    Args:
        fitted: A variant with its factored curvature.

    Returns:
        The curvature, with its answers to the queries.
    """
    interaction = _interaction(fitted)
    queries = fitted.prepared.side("queries", fitted.variant.query_label)
    parts = [interaction.answers(queries, rows) for rows in _blocks(len(queries), interaction)]
    return KeptCurvature(interaction, torch.cat(parts, dim=2))


def group_values(fitted: Fitted, chosen: Bool[NDArray[np.bool_], "J n"]) -> Float[NDArray[np.float64], "J m"]:
    """Values of sets of train examples for every query: the Newton step without each set.

    Args:
        fitted: A variant with its factored curvature.
        chosen: The sets, in the order of the train set that was fitted.

    Returns:
        Nats per unit weight, one value a set and query; an empty set has none.
    """
    interaction = _interaction(fitted)
    n, R = interaction.weights.shape
    device = interaction.weights.device
    sets = [torch.as_tensor(np.flatnonzero(row), device=device) for row in chosen]
    some = [j for j, examples in enumerate(sets) if len(examples)]
    weights = torch.zeros(len(sets), n, R, dtype=torch.float64, device=device)
    for j, corrected in zip(some, interaction.corrected([sets[j] for j in some]), strict=True):
        weights[j, sets[j]] = corrected
    queries = fitted.prepared.side("queries", fitted.variant.query_label)
    values = [
        n**0.5 * (weights.flatten(1) @ interaction.answers(queries, rows).flatten(0, 1))
        for rows in _blocks(len(queries), interaction)
    ]
    return torch.cat(values, dim=1).cpu().numpy()


def removed_values(fitted: Fitted, truth: Truth) -> Float[NDArray[np.float64], "J m"]:
    """What a fit expects of removing the examples that each part of a ground truth lacks, their interaction included.

    Args:
        fitted: A variant with its factored curvature.
        truth: Parts of the train set that was fitted, in any order, and perhaps fewer queries.

    Returns:
        One value a part and query of the ground truth, nats per unit weight.

    Raises:
        UsageError: The fit has another train set.
    """
    train = fitted.prepared.train.examples.index
    queries = fitted.prepared.side("queries", fitted.variant.query_label).examples.index
    columns = positions(train, truth.train_index, "train examples")
    if len(columns) != len(train):
        raise UsageError(
            f"The curvature was fitted on {len(train)} examples and the ground truth has {len(columns)}; fit it on these alone."
        )
    chosen = np.empty_like(truth.kept)
    chosen[:, columns] = ~truth.kept
    return group_values(fitted, chosen)[:, positions(queries, truth.query_index, "queries")]


def interacting(curvature: Curvature[Any]) -> Interacting:
    """A curvature that can tell what examples do together.

    Args:
        curvature: Any.

    Returns:
        The same.

    Raises:
        UsageError: It cannot.
    """
    if not isinstance(curvature, Interacting):
        raise UsageError(
            f"{type(curvature).__name__} does not tell what examples do together; take GaussNewton or LinearHead, or sums of "
            "scores."
        )
    return curvature


def _interaction(fitted: Fitted) -> Interaction:
    return interacting(fitted.variant.curvature).interaction(fitted.state, fitted.prepared.train)


def _blocks(m: int, interaction: Interaction) -> list[slice]:
    step = max(1, ANSWER_BYTES // (8 * interaction.weights.numel()))
    return [slice(start, min(start + step, m)) for start in range(0, m, step)]
