"""The runs of a sweep, grouped into cells, and what is estimated from their seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from ..influence.tables import Table
from .intervals import mean_difference, mean_over_seeds
from .runs import order_sources
from .transfer_cells import MEASURES, PLAIN, Cell, Row, cell_of, k_order, record, word_of

NEEDED = ("run", "source", "recipe", "data", "resolution", "n", "k", "seed", "test_accuracy", "seconds", "hidden")

Seeds = dict[int, NDArray[Any]]
"""By seed: a share or another number, [1]."""


@dataclass(slots=True, eq=False)
class Sweep:
    """The tidy tables of a sweep, grouped.

    Args:
        runs: A row a run.
        history: A row for each recorded epoch of every run.
        facts: A row a source, as its file says.
        attack: What robust accuracy was measured with; "" when it was not.

    Raises:
        UsageError: There is no run, a column is missing, or two runs of one cell and seed have different numbers.
    """

    runs: Table
    history: Table
    facts: Table
    attack: str = ""
    cells: dict[Cell, dict[int, Row]] = field(init=False)
    """By cell, ordered by data, resolution, k, n, recipe and source: by seed the row of the run."""
    sources: tuple[str, ...] = field(init=False)
    """Differences are taken from the first."""
    varying: frozenset[str] = field(init=False)
    """Fields that take more than one value."""
    _facts: dict[str, Row] = field(init=False)
    _recipes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.runs):
            raise UsageError("There is no run to report; the sweep has not finished any.")
        if missing := [name for name in NEEDED if name not in self.runs.columns]:
            raise UsageError(
                f"The table of runs has no column {', '.join(missing)}; it has {', '.join(self.runs.columns)}."
            )
        self._facts = {row["source"]: row for row in self.facts.rows()}
        had = self.runs["source"].tolist()
        self.sources = tuple(s for s in order_sources([*self._facts, *had]) if s in had)
        found: dict[Cell, dict[int, Row]] = {}
        for row in self.runs.rows():
            of_seed = found.setdefault(cell_of(row), {})
            twin = of_seed.setdefault(int(row["seed"]), row)
            if not _same(twin, row):  # a size of "all" may be one that was asked for by its number too
                raise UsageError(
                    f"Runs {twin['run']} and {row['run']} have the same data, recipe, source, k, n and seed; give their "
                    "recipes different names, or leave one out."
                )
        self._recipes = list(dict.fromkeys(self.runs["recipe"].tolist()))
        data = list(dict.fromkeys(self.runs["data"].tolist()))
        places = {
            cell: (
                *(data.index(cell.data), cell.resolution or 0, k_order(cell.k), cell.n),
                *(self._recipes.index(cell.recipe), self.sources.index(cell.source)),
            )
            for cell in found
        }
        self.cells = {cell: found[cell] for cell in sorted(found, key=lambda cell: places[cell])}
        self.varying = frozenset(name for name in Cell._fields if len({getattr(cell, name) for cell in found}) > 1)

    def values(self, name: str, among: Iterable[Cell] | None = None) -> list[Any]:
        """What a field of the cells takes.

        Args:
            name: Field of Cell, or "target".
            among: Which cells; None: all.

        Returns:
            Values without repeats: n by size, k too and "all" last, sources with the first one first, others as they came.
        """
        found = dict.fromkeys(getattr(cell, name) for cell in (self.cells if among is None else among))
        if name == "n":
            return sorted(found)
        if name == "k":
            return sorted(found, key=k_order)
        order = {"source": self.sources, "recipe": self._recipes}.get(name, list(found))
        return sorted(found, key=order.index)

    def by_seed(self, cell: Cell, measure: str) -> Seeds:
        """A measure of every run of a cell.

        Args:
            cell: Which.
            measure: Key of MEASURES.

        Returns:
            By seed; runs that were not asked are left out.
        """
        column = MEASURES[measure].column
        rows = self.cells.get(cell, {})
        return {seed: np.array([value]) for seed, row in rows.items() if np.isfinite(value := row.get(column, np.nan))}

    def has(self, measure: str) -> bool:
        """Whether any run was asked for a measure.

        Args:
            measure: Key of MEASURES.

        Returns:
            True when one was.
        """
        return any(self.by_seed(cell, measure) for cell in self.cells)

    def mean(self, cell: Cell, measure: str) -> Row | None:
        """Mean of a measure over the seeds of a cell, as a row of a table.

        Args:
            cell: Which.
            measure: Key of MEASURES.

        Returns:
            Fields of the cell, mean, low, high, seeds and basis; None where no run has the measure.
        """
        held = self.by_seed(cell, measure)
        return record(cell, measure, mean_over_seeds(held)) if held else None

    def means(self, measures: Iterable[str]) -> list[Row]:
        """Means over seeds.

        Args:
            measures: Keys of MEASURES.

        Returns:
            Rows as `mean`, measure by measure and cell by cell.
        """
        rows = (self.mean(cell, measure) for measure in measures for cell in self.cells)
        return [row for row in rows if row is not None]

    def difference(self, cell: Cell, base: Cell, measure: str) -> Row | None:
        """Mean difference between two cells, seed by seed.

        Args:
            cell: Which.
            base: What is taken away.
            measure: Key of MEASURES.

        Returns:
            As `mean`; `minus` says in words what was taken away. None where the two have no seed in common.
        """
        found = mean_difference(self.by_seed(cell, measure), self.by_seed(base, measure))
        if found is None:
            return None
        words = {"source": base.source, "recipe": base.recipe or PLAIN, "k": f"k = {base.k}", "n": f"n = {base.n}"}
        minus = [word for name, word in words.items() if getattr(base, name) != getattr(cell, name)]
        return record(cell, measure, found, minus=", ".join(minus))

    def from_first_source(self, measure: str) -> list[Row]:
        """Differences of every other source from the first one, everything else equal.

        Args:
            measure: Key of MEASURES.

        Returns:
            Rows as `difference`, where both have runs.
        """
        first = self.sources[0]
        rows = (self.difference(c, c._replace(source=first), measure) for c in self.cells if c.source != first)
        return [row for row in rows if row is not None]

    def estimates(self) -> list[Row]:
        """Every measure of every cell, and the differences from the first source.

        Returns:
            Rows with the columns of EMPTY.
        """
        return [*self.means(MEASURES), *(row for measure in MEASURES for row in self.from_first_source(measure))]

    def epochs(self) -> list[Row]:
        """Test accuracy after every recorded epoch, over seeds.

        Returns:
            Rows as `mean`, with the epoch; runs that recorded none have none.
        """
        held: dict[tuple[Cell, int], Seeds] = {}
        for row in self.history.rows():
            if (cell := cell_of(row)) in self.cells and np.isfinite(row["test_accuracy"]):
                held.setdefault((cell, int(row["epoch"])), {})[int(row["seed"])] = np.array([row["test_accuracy"]])
        place = {cell: i for i, cell in enumerate(self.cells)}
        return [
            {**record(cell, "accuracy", mean_over_seeds(held[cell, epoch])), "epoch": epoch}
            for cell, epoch in sorted(held, key=lambda key: (place[key[0]], key[1]))
        ]

    def words(self, cell: Cell, names: Iterable[str]) -> str:
        """What a cell is, in so far as it tells it from others of the sweep.

        Args:
            cell: Which.
            names: Fields that may be named.

        Returns:
            Words of those that take more than one value.
        """
        return ", ".join(word_of(name, getattr(cell, name)) for name in names if name in self.varying)

    @property
    def arm_has_k(self) -> bool:
        """Whether k varies between arms alone: a recipe for the head, say, beside one for the whole network."""
        return "k" in self.varying and len({(cell.arm, cell.k) for cell in self.cells}) == len({
            c.arm for c in self.cells
        })

    def arms(self) -> dict[tuple[str, str], str]:
        """Source and recipe, the lines of most figures.

        Returns:
            To their words, with k where it belongs to the arm; the source where nothing varies.
        """
        told = ("source", "recipe", "k") if self.arm_has_k else ("source", "recipe")
        found = {cell.arm: self.words(cell, told) or cell.source for cell in self.cells}
        return {
            arm: found[arm] for source in self.sources for recipe in self._recipes if (arm := (source, recipe)) in found
        }

    def fact(self, source: str, name: str) -> Any:
        """What a source's file says of it.

        Args:
            source: Its name.
            name: Column of the table of sources.

        Returns:
            The entry; NaN where there is none.
        """
        return self._facts.get(source, {}).get(name, np.nan)


def _same(one: Row, other: Row) -> bool:
    """Whether two runs are the same but for their names and the time they took."""
    told = {name: (value, other[name]) for name, value in one.items() if name not in {"run", "seconds"}}
    return all(a == b or (a != a and b != b) for a, b in told.values())
