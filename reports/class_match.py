"""How often influential train examples have the class of their query, beside everything that rate must be held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.tables import Table
from .class_match_figures import draw_curves, draw_summary
from .intervals import Estimate, mean_difference, mean_over_seeds
from .matches import Match, find_matches, method_labels, random_order
from .runs import Group, stack, table_of
from .settings import ReportSettings

RANK, AT_LEAST, CUMULATIVE = "rank 1", "at least {hits} of {of}", "first {ranks}"
EMPTY = ("data", "k", "n", "queries", "measure", "method", "source", "minus", "mean", "low", "high", "seeds", "basis")


class ClassMatch:
    """Class-match rates of one group, for one kind of query.

    Three measures with three names: the rate at rank r (share of queries whose r-th neighbour has their true class: Figure 8
    of Utrera et al.), the cumulative rate (mean share of matches among the first r), and the share of queries with at least
    `settings.hits` matches among the first `settings.of`.

    Args:
        group: Runs to compare.
        side: "test" or "train"; a train example is never its own neighbour.
        settings: Ranks and thresholds.
    """

    def __init__(self, group: Group, side: str, settings: ReportSettings) -> None:
        self.group, self.side, self.settings = group, side, settings
        self.found = {(run.arm, run.seed): m for run in group.runs if (m := find_matches(run, side, settings.ranks))}
        self.labels = method_labels(group, [method for matches in self.found.values() for method in matches])
        self.ranks = min((m.hits.shape[1] for matches in self.found.values() for m in matches.values()), default=0)
        self.chance = self._chance()

    def __bool__(self) -> bool:
        return bool(self.found)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that have scores of this kind."""
        return tuple(s for s in self.group.sources if any(source == s for source, _ in self.found))

    @property
    def measures(self) -> dict[str, str]:
        """The three measures: identifier to words."""
        s = self.settings
        names = {"rank1": RANK, "at_least": AT_LEAST, "cumulative": CUMULATIVE}
        return {key: name.format(hits=s.hits, of=s.of, ranks=self.ranks) for key, name in names.items()}

    def curve(self, method: str, source: str, *, cumulative: bool = False) -> Estimate | None:
        """The rate at every rank.

        Args:
            method: One of `labels`.
            source: A source model.
            cumulative: The cumulative rate instead.

        Returns:
            Means over seeds with intervals, or None where the source has no such scores.
        """
        shares = self._shares(method, source, "cumulative_curve" if cumulative else "curve")
        return mean_over_seeds(shares) if shares else None

    def estimate(self, measure: str, method: str, source: str, minus: str = "") -> Estimate | None:
        """One measure of one method.

        Args:
            measure: "rank1", "at_least" or "cumulative".
            method: One of `labels`.
            source: A source model.
            minus: Another source, for the paired difference from it.

        Returns:
            One point, or None where there are no such scores.
        """
        shares = self._shares(method, source, measure)
        if not shares:
            return None
        return mean_difference(shares, self._shares(method, minus, measure)) if minus else mean_over_seeds(shares)

    def gain(self, measure: str, method: str, base: str, source: str) -> Estimate | None:
        """What one method finds beyond another.

        Args:
            measure: "rank1", "at_least" or "cumulative".
            method: One of `labels`.
            base: The other one.
            source: The source model of both.

        Returns:
            The paired difference, or None where there are no such scores.
        """
        shares = self._shares(method, source, measure)
        return mean_difference(shares, self._shares(base, source, measure)) if shares else None

    def _chance(self) -> dict[str, float]:
        """The three measures for a random order of the train set, mean over the runs."""
        scored = [scores for run in self.group.runs if (scores := run.main_side(self.side)) is not None]
        levels = [random_order(scores, self.settings) for scores in scored]
        return {
            measure: float(np.mean([level[measure] for level in levels])) for measure in (levels[0] if levels else ())
        }

    def _shares(self, method: str, source: str, measure: str) -> dict[int, NDArray[Any]]:
        held = {seed: matches[method] for (s, seed), matches in self.found.items() if s == source and method in matches}
        return {seed: self._measure(match, measure) for seed, match in held.items()}

    def _measure(self, match: Match, measure: str) -> NDArray[Any]:
        if measure == "at_least":
            return match.at_least(self.settings.hits, self.settings.of)
        if measure == "rank1":
            return match.hits[:, :1]
        if measure == "curve":
            return match.hits[:, : self.ranks]
        cumulative = match.cumulative
        return (
            cumulative[:, : self.ranks] if measure == "cumulative_curve" else cumulative[:, self.ranks - 1 : self.ranks]
        )

    def frame(self) -> Table:
        """The three measures over seeds.

        Returns:
            A row for each measure, method and source; where `minus` names a source, the difference from it, seed by seed.
        """
        rows = [
            {**self._columns, "measure": name, "method": method, "source": source, "minus": minus, **found.first()}
            for measure, name in self.measures.items()
            for method in self.labels
            for source, minus in self._pairs()
            if (found := self.estimate(measure, method, source, minus)) is not None
        ]
        exact = {"low": float("nan"), "high": float("nan"), "seeds": len(self.group.seeds), "basis": "exact"}
        rows += [
            {
                **self._columns,
                "measure": name,
                "method": "chance",
                "source": s,
                "minus": "",
                "mean": self.chance[measure],
                **exact,
            }
            for measure, name in self.measures.items()
            for s in self.sources
        ]
        return table_of(rows, "Class match: three measures, mean over seeds with 95% intervals", EMPTY)

    def curves(self) -> Table:
        """Rates at every rank, over seeds.

        Returns:
            A row for each method, source and rank.
        """
        tables = []
        for method in self.labels:
            for source in self.sources:
                rate, cumulative = self.curve(method, source), self.curve(method, source, cumulative=True)
                if rate is not None and cumulative is not None:
                    tables.append(self._curve_table(method, source, rate, cumulative))
        return stack(tables, "Class match at every rank: mean over seeds with 95% intervals")

    def _curve_table(self, method: str, source: str, rate: Estimate, cumulative: Estimate) -> Table:
        same = {**self._columns, "method": method, "source": source}
        return Table({
            **{name: np.full(self.ranks, value) for name, value in same.items()},
            "rank": np.arange(1, self.ranks + 1),
            **{"rate": rate.mean, "low": rate.low, "high": rate.high},
            **{
                f"cumulative{end}": v
                for end, v in (("", cumulative.mean), ("_low", cumulative.low), ("_high", cumulative.high))
            },
            "seeds": np.full(self.ranks, rate.seeds),
            "basis": np.full(self.ranks, rate.basis),
        })

    def runs_frame(self) -> Table:
        """The three measures of every run.

        Returns:
            A row for each run, measure and method, with Wilson's interval over the run's queries.
        """
        runs = {(run.arm, run.seed): run for run in self.group.runs}
        rows = [
            {
                **self.group.columns_of(runs[place]),
                "queries": self.side,
                "run": runs[place].name,
                "source": place[0],
                "seed": place[1],
                "measure": name,
                "method": method,
            }
            | mean_over_seeds({place[1]: self._measure(match, measure)}).first()
            for place, matches in self.found.items()
            for measure, name in self.measures.items()
            for method, match in matches.items()
        ]
        return table_of(rows, "Class match of every run, with 95% Wilson intervals over its queries")

    @property
    def _columns(self) -> dict[str, Any]:
        return {**self.group.columns, "queries": self.side}

    def _pairs(self) -> list[tuple[str, str]]:
        """Every source, and every source less the first."""
        return [(s, "") for s in self.sources] + [(s, self.sources[0]) for s in self.sources[1:]]

    def plot(self, *, cumulative: bool = False) -> Figure:
        """Rates against rank, a panel for each method.

        Args:
            cumulative: The cumulative rates instead.

        Returns:
            The figure; bands are 95% intervals, the dotted line is chance.
        """
        curves = {m: {s: self.curve(m, s, cumulative=cumulative) for s in self.sources} for m in self.labels}
        what = "cumulative match rate" if cumulative else "match rate at the rank"
        return draw_curves(curves, self.labels, self.sources, self.group.order, self.chance["rank1"], what)

    def plot_summary(self) -> Figure:
        """Rank 1 and "at least" as points with intervals, a line for each method.

        Returns:
            The figure.
        """
        shown = {
            name: {m: {s: self.estimate(key, m, s) for s in self.sources} for m in self.labels}
            for key, name in self.measures.items()
        }
        levels = {name: self.chance[key] for key, name in self.measures.items()}
        return draw_summary(shown, self.labels, self.sources, self.group.order, levels)
