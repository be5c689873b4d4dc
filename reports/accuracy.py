"""Accuracies over seeds, and the paired difference between sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.tables import Table
from .intervals import mean_difference, mean_over_seeds
from .runs import SIDES, Group, RunView, order_sources, table_of
from .style import figure, legend_columns, source_colours, source_markers, spread, styled

EMPTY = ("data", "k", "n", "set", "source", "minus", "mean", "low", "high", "seeds", "basis")


def accuracy(run: RunView, side: str) -> float | None:
    """Share of one side's examples whose predicted class is their label.

    Args:
        run: The run.
        side: "train" or "test".

    Returns:
        What training recorded; where the run has no such record, counted from the stored predictions; None for the test set of
        a run that was never asked about one.
    """
    recorded = run.info.get("accuracy", {}).get(side)
    if recorded is not None:
        return float(recorded)
    if side == "test" and run.main.on_itself:
        return None
    examples = run.main.queries if side == "test" else run.main.train
    return float(np.mean(examples.prediction == examples.label))


class Accuracies:
    """Accuracies of all groups of a report.

    Args:
        groups: Runs to compare, group by group.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups

    def runs_frame(self) -> Table:
        """Accuracy of every run.

        Returns:
            A row for each run and set.
        """
        rows = [
            {
                **group.columns_of(run),
                "run": run.name,
                "source": run.arm,
                "seed": run.seed,
                "set": side,
                "accuracy": share,
            }
            for group in self.groups
            for run in group.runs
            for side in SIDES
            if (share := accuracy(run, side)) is not None
        ]
        return table_of(rows, "Accuracy of every run")

    def frame(self) -> Table:
        """Means over seeds and paired differences.

        Returns:
            A row for each group, set and source; where `minus` names a source, the row is the difference from it, seed by seed.
        """
        rows = [row for group in self.groups for side in SIDES for row in _rows(group, side)]
        return table_of(rows, "Accuracy: mean over seeds with its 95% t interval", EMPTY)

    def plot(self) -> Figure:
        """Test and train accuracies: one mark a seed, a bar for the interval of the mean.

        Returns:
            A figure with a panel for each set.
        """
        sources = order_sources(s for group in self.groups for s in group.sources)
        with styled():
            most = max(len(group.sources) for group in self.groups)
            fig = figure(7.6, 0.9 + 0.42 * len(self.groups) * max(1.4, 0.62 * most))
            axes = fig.subplots(1, 2, sharey=True)
            for ax, side in zip(axes, SIDES, strict=True):
                self._panel(ax, side, sources)
            by_name = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
            labels = [source for source in sources if source in by_name]
            handles = [by_name[source] for source in labels]
            fig.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, 7.6))
        return fig

    def _panel(self, ax: Axes, side: str, sources: Sequence[str]) -> None:
        colours, markers = source_colours(sources), source_markers(sources)
        named: set[str] = set()
        for i, group in enumerate(self.groups):
            for source, offset in zip(group.sources, spread(len(group.sources)), strict=True):
                shares = _by_seed(group, source, side)
                if shares:
                    label = "" if source in named else source
                    self._marks(ax, shares, i + offset, colours[source], markers[source], label)
                    named.add(source)
        ax.set_yticks(range(len(self.groups)), [_row_name(group, self.groups) for group in self.groups])
        ax.set_ylim(len(self.groups) - 0.5, -0.5)
        ax.set_xlabel(f"{side} accuracy, share of examples")
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.08)

    @staticmethod
    def _marks(ax: Axes, shares: dict[int, NDArray[Any]], place: float, colour: str, marker: str, label: str) -> None:
        estimate = mean_over_seeds(shares)
        span = np.clip([estimate.low[0], estimate.high[0]], 0, 1)
        ax.plot(span, [place, place], color=colour, linewidth=6, alpha=0.25, solid_capstyle="butt")
        values = [float(part.mean()) for part in shares.values()]
        ax.plot(values, [place] * len(values), marker, color=colour, markersize=4.5, alpha=0.85, label=label or None)


def _by_seed(group: Group, source: str, side: str) -> dict[int, NDArray[Any]]:
    runs = [run for run in group.runs if run.arm == source]
    return {run.seed: _share(run, side, known) for run in runs if (known := accuracy(run, side)) is not None}


def _share(run: RunView, side: str, recorded: float) -> NDArray[Any]:
    """Right or wrong for every example [., 1] where that is the recorded accuracy; otherwise the record alone [1]."""
    examples = run.main.queries if side == "test" else run.main.train
    right = examples.prediction == examples.label
    return right[:, None] if abs(recorded - right.mean()) < 0.5 / len(right) else np.array([recorded])


def _rows(group: Group, side: str) -> list[dict[str, Any]]:
    base, *others = group.sources
    by_seed = {source: _by_seed(group, source, side) for source in group.sources}
    same = {**group.columns, "set": side}
    rows = [{**same, "source": s, "minus": "", **mean_over_seeds(v).first()} for s, v in by_seed.items() if v]
    for source in others:
        difference = mean_difference(by_seed[source], by_seed[base])
        if difference is not None:
            rows.append({**same, "source": source, "minus": base, **difference.first()})
    return rows


def _row_name(group: Group, groups: Sequence[Group]) -> str:
    name = "every k" if group.k is None else f"k = {group.k}"
    if len({g.n for g in groups}) > 1:
        name += f", n = {group.n}"
    return f"{group.data}, {name}" if len({g.data for g in groups}) > 1 and group.data else name
