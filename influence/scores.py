"""The result: a matrix of scores with what is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from .baselines import baseline_scores, chance
from .examples import Examples
from .kept import KeptCurvature
from .ranking import ROWS, Matrix, ScoreRows, neighbours, wilson
from .solve import Inversion
from .spectrum import Spectrum
from .tables import Table

MatchLabel = Literal["true", "predicted"]


class Scores:
    """score[t, i] = + g_t^T H^+ g_i of every query t and train example i.

    Positive: i is helpful to t (a proponent); removing it raises the loss of t by about score / n. Nats per unit weight.

    Args:
        matrix: Scores [m, n], an array or a dataset on disk.
        queries: What is known of the queries, [m].
        train: What is known of the train set, [n].
        spectrum: Facts of the curvature; None for a method without one.
        meta: How the scores were made: curvature and settings, query label, unit, sign, versions, warnings.
        on_train: The train set on itself, when it was asked for.
        on_itself: The queries are the train set: self stays in the matrix and is left out of every ranking.
        at_damping: The same scores at further dampings.
        curvature: What values of sets of examples are made with, where it was to be kept.
    """

    def __init__(
        self,
        matrix: Matrix,
        queries: Examples,
        train: Examples,
        *,
        spectrum: Spectrum | None = None,
        meta: Mapping[str, Any] | None = None,
        on_train: Scores | None = None,
        on_itself: bool = False,
        at_damping: Mapping[float | str, Scores] | None = None,
        curvature: KeptCurvature | None = None,
    ) -> None:
        if tuple(matrix.shape) != (len(queries), len(train)):
            raise UsageError(
                f"A matrix {list(matrix.shape)} does not fit {len(queries)} queries and {len(train)} examples."
            )
        self.matrix = matrix
        self.queries = queries
        self.train = train
        self.spectrum = spectrum
        self.meta: dict[str, Any] = dict(meta or {})
        self.on_train = on_train
        self.on_itself = on_itself
        self._at_damping = dict(at_damping or {})
        self._curvature = curvature

    def __repr__(self) -> str:
        name = self.meta.get("curvature", {}).get("name", "scores")
        return f"Scores({len(self.queries)} queries x {len(self.train)} train examples, {name})"

    @property
    def at_damping(self) -> dict[float | str, Scores]:
        """Scores by damping: those of every entry where the curvature had a list, these scores first.

        The key of a rule is its name, "auto"; the number that it came to is in `spectrum.damping`. Of a single damping there is
        one entry, of a method without damping none. The scores of a further entry hold themselves alone.
        """
        curvature = self.meta.get("curvature")
        own = curvature.get("damping") if isinstance(curvature, Mapping) else None
        return ({own: self} if isinstance(own, float | int | str) else {}) | self._at_damping

    def top(self, query: int, k: int = 5) -> Table:
        """The train examples that help a query most.

        Args:
            query: Row of the query.
            k: How many.

        Returns:
            rank (from 1), train_id, score, label; among equal scores the example that comes first in the train set leads.

        Raises:
            UsageError: There is no such row, or k is below 1.
        """
        return self._extremes(query, k, helpful=True)

    def bottom(self, query: int, k: int = 5) -> Table:
        """The train examples that harm a query most.

        Args:
            query: Row of the query.
            k: How many.

        Returns:
            rank (from 1), train_id, score, label; lowest score first.

        Raises:
            UsageError: There is no such row, or k is below 1.
        """
        return self._extremes(query, k, helpful=False)

    def group(self, ids: Sequence[int] | NDArray[Any], interaction: bool = False) -> NDArray[np.float64]:
        """What a set of train examples is worth to every query.

        Args:
            ids: The examples, as in `train_id`.
            interaction: With what they do together: one Newton step of the objective without the whole set, the weights of the
                others kept. Needs `attribute(..., keep_curvature=True)`. Without: their scores added up.

        Returns:
            Values [m], nats per unit weight; positive: removing the set raises the query's loss by about value / n.

        Raises:
            UsageError: The set is empty, an id is unknown or named twice, or no curvature was kept.
        """
        chosen = np.sort(self._positions(ids))
        if interaction:
            return self._kept().value(chosen)
        blocks = [slice(start, min(start + ROWS, len(self.queries))) for start in range(0, len(self.queries), ROWS)]
        return np.concatenate([np.array(self.matrix[rows])[:, chosen].sum(1, dtype=np.float64) for rows in blocks])

    def greedy(self, query: int, k: int = 5) -> Table:
        """A set that is worth much to a query as a whole: each example has the largest gain beside those taken before it.

        Needs `attribute(..., keep_curvature=True)`; values are those of `group(..., interaction=True)`.

        Args:
            query: Row of the query.
            k: Size of the set; cut to the number of train examples.

        Returns:
            rank (from 1), train_id, gain, total (the value of the set so far), label.

        Raises:
            UsageError: There is no such row, k is below 1, or no curvature was kept.
        """
        self._check(query, k)
        itself = query if self.on_itself else None
        k = min(k, len(self.train) - (itself is not None))
        taken, gains = self._kept().greedy(query, k, itself)
        columns = {
            "rank": np.arange(1, k + 1),
            "train_id": self.train.index[taken],
            "gain": np.array(gains),
            "total": np.cumsum(gains),
            "label": self.train.label[taken],
        }
        return Table(columns, f"Train examples that together help query {query} most")

    def class_match(self, k: int = 100, label: MatchLabel = "true") -> Table:
        """How often neighbours have the class of their query, beside what simpler scores reach.

        Args:
            k: Ranks to report; cut to the number of train examples.
            label: The class that counts for a query: its true or its predicted one. A neighbour's is always the true one.

        Returns:
            One row a rank: rank; rate, the share of queries whose neighbour of that rank matches (Figure 8 of Utrera et al.),
            with its Wilson 95% interval low, high; cumulative, the mean share of matches among the first `rank`, with
            cumulative_low, cumulative_high (conservative); chance, the level of a random order; and for every baseline B the
            columns B, B_low, B_high, B_cumulative.

        Raises:
            UsageError: k is below 1.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}.")
        m = len(self.queries)
        columns: dict[str, NDArray[Any]] = {}
        for name, hits in self.matches(k, label).items():
            rate = hits.mean(0)
            low, high = wilson(rate, m)
            ranks = np.arange(1, hits.shape[1] + 1)
            cumulative = rate.cumsum() / ranks
            if name == "influence":
                c_low, c_high = wilson(cumulative, m)
                columns |= {"rank": ranks, "rate": rate, "low": low, "high": high}
                columns |= {"cumulative": cumulative, "cumulative_low": c_low, "cumulative_high": c_high}
                columns["chance"] = np.full(len(ranks), self._chance(label))
            else:
                columns |= {name: rate, f"{name}_low": low, f"{name}_high": high, f"{name}_cumulative": cumulative}
        return Table(columns, f"Share of queries whose neighbour has their {label} class")

    def at_least(self, hits: int = 3, of: int = 5, label: MatchLabel = "true") -> Table:
        """Share of queries with at least so many matching classes among their first neighbours.

        Args:
            hits: Matches wanted.
            of: Neighbours looked at.
            label: The class that counts for a query.

        Returns:
            One row a method, the influence scores first: method, rate, low, high (Wilson 95%).

        Raises:
            UsageError: `hits` is not between 1 and `of`.
        """
        if not 1 <= hits <= of:
            raise UsageError(f"hits must lie between 1 and of, got {hits} of {of}.")
        rates = {name: float((found.sum(1) >= hits).mean()) for name, found in self.matches(of, label).items()}
        low, high = wilson(np.array(list(rates.values())), len(self.queries))
        columns = {"method": np.array(list(rates)), "rate": np.array(list(rates.values())), "low": low, "high": high}
        return Table(
            columns, f"Share of queries with at least {hits} of their first {of} neighbours in their {label} class"
        )

    def matches(self, k: int, label: MatchLabel = "true", *, baselines: bool = True) -> dict[str, NDArray[np.bool_]]:
        """Which of the first neighbours of every query have its class: what both class-match measures are means of.

        Args:
            k: Neighbours of each query; cut to the number of train examples.
            label: The class that counts for a query, as in `class_match`.
            baselines: Also what simpler scores find; False saves the time where they are known already.

        Returns:
            By method, "influence" first: [m, k], nearest neighbour first.
        """
        wanted = self._wanted(label)
        methods: dict[str, ScoreRows] = {"influence": lambda rows: self.matrix[rows]}
        if baselines:
            damping = self.spectrum.damping if self.spectrum is not None else 0.0
            methods |= baseline_scores(
                self.queries,
                self.train,
                self.target(),
                Inversion(damping=damping),
                bias=self.meta.get("head_bias", True),
            )
        m, n = len(self.queries), len(self.train)
        found = {name: neighbours(rows, m, n, k, on_itself=self.on_itself) for name, rows in methods.items()}
        return {name: self.train.label[order] == wanted[:, None] for name, order in found.items()}

    def self_influence(self) -> NDArray[Any]:
        """How much each train example's own weight lowers its own loss.

        Returns:
            score[i, i] of every train example [n], nats per unit weight.

        Raises:
            UsageError: The train set was not scored on itself.
        """
        if self.on_itself:
            n = len(self.train)
            return np.array([self.matrix[i : i + 1][0, i] for i in range(n)])
        if self.on_train is None:
            raise UsageError("These scores hold no train-on-train matrix; call attribute(..., train_scores=True).")
        return self.on_train.self_influence()

    def save(self, path: str | Path) -> None:
        """Write the scores to an HDF5 store.

        Args:
            path: A file that does not exist yet.
        """
        from ..cache.store import save_scores  # the one arrow back: reading and writing belongs to cache/

        save_scores(self, path)

    def target(self) -> NDArray[np.int64]:
        """The label that the loss of each query was taken at.

        Returns:
            True or predicted classes [m].
        """
        return self.queries.prediction if self.meta.get("query_label") == "predicted" else self.queries.label

    def _check(self, query: int, k: int) -> None:
        if not 0 <= query < len(self.queries):
            raise UsageError(
                f"Query {query} is out of range: there are {len(self.queries)} queries, 0 to {len(self.queries) - 1}."
            )
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}.")

    def _kept(self) -> KeptCurvature:
        if self._curvature is None:
            raise UsageError(
                "What examples do together takes the factored curvature, which these scores do not hold; make them with "
                "attribute(..., keep_curvature=True), in memory."
            )
        return self._curvature

    def _positions(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        wanted = [int(index) for index in ids]
        at = {int(index): position for position, index in enumerate(self.train.index)}
        unknown = [index for index in wanted if index not in at]
        if not wanted or unknown:
            found = f"There is no train example {unknown[0]}" if unknown else "The set of train examples is empty"
            raise UsageError(f"{found}; name them by their train_id.")
        if len(set(wanted)) < len(wanted):
            twice = next(index for i, index in enumerate(wanted) if index in wanted[:i])
            raise UsageError(f"Train example {twice} is named twice in the set; name each once.")
        return np.array([at[index] for index in wanted])

    def _extremes(self, query: int, k: int, *, helpful: bool) -> Table:
        self._check(query, k)
        row = np.array(self.matrix[query : query + 1][0])
        order = np.argsort(-row if helpful else row, kind="stable")
        if self.on_itself:
            order = order[order != query]
        order = order[:k]
        columns = {
            "rank": np.arange(1, len(order) + 1),
            "train_id": self.train.index[order],
            "score": row[order],
            "label": self.train.label[order],
        }
        return Table(columns, f"Most {'helpful' if helpful else 'harmful'} train examples for query {query}")

    def _wanted(self, label: MatchLabel) -> NDArray[np.int64]:
        if label not in ("true", "predicted"):
            raise UsageError(f"label must be 'true' or 'predicted', got {label!r}.")
        return self.queries.label if label == "true" else self.queries.prediction

    def _chance(self, label: MatchLabel) -> float:
        return chance(self.queries, self.train, self._wanted(label), on_itself=self.on_itself)
