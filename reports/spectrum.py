"""Eigenvalues of the curvature, with what was cut and what was added, and the facts of its inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..influence.spectrum import Spectrum
from ..influence.tables import Table
from .labels import number
from .runs import Group, RunView, table_of, variant_name
from .style import FAINT, INK, figure, source_colours, styled

FACTS = (
    "size",
    "rank",
    "cutoff",
    "damping",
    "lambda_max",
    "lambda_min",
    "smallest_kept",
    "condition",
    "trace_kept",
    "negative",
    "negative_trace",
)
EMPTY = ("data", "k", "n", "run", "source", "seed", "variant")


class Spectra:
    """The spectra of one group.

    Args:
        group: Runs to compare; facts are given for all of them, eigenvalues drawn for those of `group.first_seed`.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.drawn = [
            (run, s) for run in group.drawn if (s := run.main.spectrum) is not None and s.eigenvalues is not None
        ]

    def __bool__(self) -> bool:
        """Whether there are eigenvalues to draw."""
        return bool(self.drawn)

    def frame(self) -> Table:
        """Facts and sensitivity.

        Returns:
            A row for each run and variant that has a curvature.
        """
        held = [
            (run, v, s.spectrum) for run in self.group.runs for v, s in run.scores.items() if s.spectrum is not None
        ]
        keys = sorted({key for _, _, spectrum in held for key in spectrum.sensitivity})
        rows = [
            {**self._columns(run), "variant": variant_name(variant), **_facts(spectrum, keys)}
            for run, variant, spectrum in held
        ]
        return table_of(rows, "Facts of the curvature and of its inverse", EMPTY)

    def eigenvalues(self) -> Table:
        """All eigenvalues drawn.

        Returns:
            A row for each: run, its place (descending) and its value.
        """
        parts = [(run, np.asarray(spectrum.eigenvalues)) for run, spectrum in self.drawn]
        names = {
            name: np.concatenate([np.full(len(e), self._columns(run)[name]) for run, e in parts]) for name in EMPTY[:-1]
        }
        places = np.concatenate([np.arange(1, len(e) + 1) for _, e in parts])
        return Table(
            {**names, "place": places, "eigenvalue": np.concatenate([e for _, e in parts])},
            "Eigenvalues of the mean curvature",
        )

    def _columns(self, run: RunView) -> dict[str, Any]:
        return {**self.group.columns_of(run), "run": run.name, "source": run.arm, "seed": run.seed}

    def plot(self) -> Figure:
        """Eigenvalues in descending order, on a logarithmic scale.

        Returns:
            The figure; negative eigenvalues by their absolute value, as open circles; zeros are left out.
        """
        colours = source_colours(self.group.order)
        with styled():
            fig = figure(7.2, 3.7)
            ax = fig.subplots()
            for run, spectrum in self.drawn:
                _curve(ax, np.asarray(spectrum.eigenvalues), colours[run.arm], run.arm)
            self._levels(ax, colours)
            ax.set_yscale("log")
            ax.set_xlim(left=0)
            ax.set_xlabel("eigenvalue, in descending order")
            ax.set_ylabel("|eigenvalue|, nats per squared\nunit of parameter")
            ax.grid(axis="y")
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return fig

    def _levels(self, ax: Axes, colours: dict[str, str]) -> None:
        """The cutoff of each source, and every damping in use."""
        for run, spectrum in self.drawn:
            if spectrum.cutoff > 0:
                label = f"cutoff, {run.arm}: {number(spectrum.cutoff)}"
                ax.axhline(spectrum.cutoff, color=colours[run.arm], linestyle=(0, (5, 2)), linewidth=1.0, label=label)
        dampings = {s.spectrum.damping for run, _ in self.drawn for s in run.scores.values() if s.spectrum is not None}
        for damping in sorted(dampings - {0.0}):
            ax.axhline(damping, color=INK, linestyle=":", linewidth=1.1, label=f"damping: {number(damping)}")


def _facts(spectrum: Spectrum, keys: list[str]) -> dict[str, float]:
    facts = {name: getattr(spectrum, name) for name in FACTS}
    return facts | {key: float(spectrum.sensitivity.get(key, np.nan)) for key in keys}


def _curve(ax: Axes, eigenvalues: np.ndarray, colour: str, source: str) -> None:
    places = np.arange(1, len(eigenvalues) + 1)
    positive, negative = eigenvalues > 0, eigenvalues < 0
    ax.plot(places[positive], eigenvalues[positive], color=colour, label=f"{source}: {len(eigenvalues)} eigenvalues")
    if negative.any():
        label = f"{source}: {int(negative.sum())} negative"
        ax.plot(
            places[negative],
            -eigenvalues[negative],
            "o",
            markersize=3,
            markerfacecolor="white",
            color=colour,
            label=label,
        )
    if not (positive.any() or negative.any()):
        ax.text(0.5, 0.5, f"{source}: every eigenvalue is zero", transform=ax.transAxes, ha="center", color=FAINT)
