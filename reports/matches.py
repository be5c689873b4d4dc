"""What every method finds in one run: whether neighbours have their query's class, and what a random order would find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..influence.baselines import chance
from ..influence.scores import Scores
from .labels import variant_label
from .runs import PREDICTED, Group, RunView
from .settings import ReportSettings

BASELINES = {
    "cosine": "feature cosine\n(sees no label)",
    "residual": "residual dot product\n(sees no features)",
    "gradient": "gradient dot product",
    "random_head": "influence,\nrandom head",
    "residual_predicted": "residual dot product,\npredicted label",
}
ORDER = ("cosine", "residual", "residual_predicted", "gradient", "random_head")


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """What one method found in one run: whether each of the first neighbours has its query's class."""

    hits: NDArray[np.bool_]
    """[m, ranks], nearest first."""

    @property
    def cumulative(self) -> NDArray[np.float32]:
        """Share of matches among the first r neighbours of each query [m, ranks]."""
        shares: NDArray[np.float32] = np.cumsum(self.hits, axis=1, dtype=np.float32)
        shares /= np.arange(1, self.hits.shape[1] + 1, dtype=np.float32)
        return shares

    def at_least(self, hits: int, of: int) -> NDArray[np.bool_]:
        """Whether enough of the first neighbours match.

        Args:
            hits: How many must.
            of: Among how many.

        Returns:
            [m, 1].
        """
        enough: NDArray[np.bool_] = self.hits[:, :of].sum(axis=1, keepdims=True) >= hits
        return enough


def find_matches(run: RunView, side: str, ranks: int) -> dict[str, Match]:
    """What every variant of a run's scores and every baseline finds.

    The baselines do not depend on the damping, so they are made once, beside the scores shown first.

    Args:
        run: The run.
        side: "test" or "train".
        ranks: Neighbours of each query.

    Returns:
        By method; empty where the run has no scores of this kind.
    """
    found: dict[str, Match] = {}
    main = run.main_side(side)
    for variant in run.scores:
        scores = run.side(variant, side)
        if scores is None:
            continue
        hits = scores.matches(ranks, "true", baselines=scores is main or variant == PREDICTED)
        found[method_of(variant)] = Match(hits["influence"])
        if scores is main:
            found |= {name: Match(hits[name]) for name in BASELINES if name in hits}
        elif "residual" in hits:
            found["residual_predicted"] = Match(hits["residual"])
    return found


def method_of(variant: str) -> str:
    """The identifier of a variant's scores among the methods.

    Args:
        variant: Key of a run's scores.

    Returns:
        "influence", or "influence_" and the variant.
    """
    return f"influence_{variant}" if variant else "influence"


def method_labels(group: Group, methods: Iterable[str]) -> dict[str, str]:
    """What the methods of a group are called.

    Args:
        group: Runs to compare.
        methods: Identifiers of the methods that occur.

    Returns:
        Identifier to words: influence first, then the baselines.
    """
    present = set(methods)
    variants = {method_of(v): (run, v) for run in reversed(group.runs) for v in run.scores}
    ours = [method for method in sorted(variants, key=_place) if method in present]
    words = {m: f"influence, {variant_label(*variants[m])}".replace(", ", ",\n") for m in ours}
    return words | {m: BASELINES[m] for m in ORDER if m in present}


def _place(method: str) -> tuple[int, str]:
    known = ("influence", "influence_damped", "influence_predicted")
    return (known.index(method) if method in known else len(known), method)


def random_order(scores: Scores, settings: ReportSettings) -> dict[str, float]:
    """What a random order of the train set would reach.

    Args:
        scores: Any scores of the queries asked; only labels are read.
        settings: Thresholds of the "at least" measure.

    Returns:
        By measure: the share of the wanted class, and the hypergeometric chance of enough of it among the first.
    """
    queries, train = scores.queries.label, scores.train.label
    level = chance(scores.queries, scores.train, queries, on_itself=scores.on_itself)
    others = len(train) - scores.on_itself
    counts = np.bincount(train, minlength=int(queries.max()) + 1)[queries] - scores.on_itself
    enough = stats.hypergeom.sf(settings.hits - 1, others, counts, min(settings.of, others))
    return {"rank1": level, "at_least": float(np.mean(enough)), "cumulative": level}
