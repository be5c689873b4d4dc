"""What a report reads: runs as plain arrays and scores, put together into groups that may be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from ..influence.scores import Scores
from ..influence.tables import Table
from .arms import arm_marks

UNDAMPED, DAMPED, PREDICTED, BLOCK = "", "damped", "predicted", "block"
SIDES = ("test", "train")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunView:
    """One run as the report sees it: its scores, and the pictures that go with them."""

    name: str
    """Name of the run's folder."""
    source: str
    """Name of the source model the run was fine-tuned from."""
    k: int
    """Number of fine-tuned blocks; 0 is the head alone."""
    seed: int
    """Seed of the subset and of the training."""
    n: int
    """Number of train examples."""
    info: Mapping[str, Any]
    """The run's run.json; may be empty for scores that came from elsewhere."""
    scores: Mapping[str, Scores]
    """Scores of the queries by variant: "" as in the paper, "damped", "predicted" (loss at the predicted label)."""
    class_names: Sequence[str]
    """Name of every class."""
    recipe: str = ""
    """What its fine-tuning did otherwise than a plain one, in short words."""
    mark: str = ""
    """What tells it from other runs of its source; given when runs are put together."""
    train_images: NDArray[Any] | None = None
    """Pictures [n, c, h, w] of the train examples, in [0, 1], as a person should see them."""
    query_images: NDArray[Any] | None = None
    """Pictures [m, c, h, w] of the queries."""
    saliency_rows: NDArray[Any] | None = None
    """Query rows [s] whose input gradient was computed."""
    saliency: NDArray[Any] | None = None
    """Gradient [s, c, h, w] of the loss of those queries, per unit of a pixel in [0, 1]."""

    def __post_init__(self) -> None:
        if not self.scores:
            raise UsageError(f"Run {self.name} has no scores to report; run `upweight attribute` on it first.")

    @property
    def main(self) -> Scores:
        """The variant shown first: undamped where there is one."""
        return self.scores[UNDAMPED] if UNDAMPED in self.scores else next(iter(self.scores.values()))

    @property
    def arm(self) -> str:
        """What the run is compared as: its source, and what tells it from others of that source."""
        return ", ".join(part for part in (self.source, self.mark) if part)

    @property
    def data(self) -> str:
        """Name of the target data set and the resolution it was reduced to, or "" when the run does not say."""
        said = self.info.get("data", {})
        pixels = said.get("settings", {}).get("resolution")
        return f"{said.get('name', '')}{'' if pixels is None else f' at {pixels} pixels'}"

    def side(self, variant: str, side: str) -> Scores | None:
        """The scores of one variant for one kind of query.

        Args:
            variant: Key of `scores`.
            side: "test", or "train" for the train set on itself.

        Returns:
            The scores, or None where the run has none.
        """
        scores = self.scores.get(variant)
        if scores is None or scores.on_itself:  # scored without queries: the train set is all there is
            return scores if side == "train" else None
        return scores if side == "test" else scores.on_train

    def main_side(self, side: str) -> Scores | None:
        """The scores of the first variant, `main` before the others, that has one kind of query.

        Args:
            side: "test" or "train".

        Returns:
            The scores, or None where no variant has them.
        """
        held = (self.side(variant, side) for variant in sorted(self.scores, key=lambda name: name != UNDAMPED))
        return next((scores for scores in held if scores is not None), None)

    def class_name(self, label: int) -> str:
        """What a class is called.

        Args:
            label: Class number.

        Returns:
            Its name, or the number where the run names no such class.
        """
        return str(self.class_names[label]) if 0 <= label < len(self.class_names) else str(label)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Runs that are compared with each other: they differ in source, recipe and seed alone, and in k where that was asked for."""

    data: str
    k: int | None
    """None: runs of any k."""
    n: int
    runs: tuple[RunView, ...]
    order: tuple[str, ...]
    """Names of all arms of the report, which their colours go by."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the arms, the one that differences are taken from first."""
        return order_sources(run.arm for run in self.runs)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, ascending."""
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def key(self) -> str:
        """Short name of the group, fit for file names and anchors."""
        slug = re.sub(r"[\W_]+", "-", self.data.lower()).strip("-")
        return "-".join(part for part in (slug, "" if self.k is None else f"k{self.k}", f"n{self.n}") if part)

    @property
    def first_seed(self) -> int:
        """The seed whose images and matrices are drawn: the lowest that most arms have."""
        counts = {seed: sum(run.seed == seed for run in self.runs) for seed in self.seeds}
        return max(self.seeds, key=lambda seed: (counts[seed], -seed))

    @property
    def drawn(self) -> tuple[RunView, ...]:
        """One run an arm, at `first_seed` where the arm has it."""
        of_arm = {arm: [run for run in self.runs if run.arm == arm] for arm in self.sources}
        return tuple(next((run for run in runs if run.seed == self.first_seed), runs[0]) for runs in of_arm.values())

    @property
    def columns(self) -> dict[str, Any]:
        """What every table row of this group begins with; k is NaN where it holds runs of any."""
        return {"data": self.data, "k": float("nan") if self.k is None else self.k, "n": self.n}

    def columns_of(self, run: RunView) -> dict[str, Any]:
        """What a table row of one run begins with.

        Args:
            run: One of the runs.

        Returns:
            The columns of the group, with the run's own k.
        """
        return {**self.columns, "k": run.k}


def variant_name(variant: str) -> str:
    """What a variant is called in tables.

    Args:
        variant: Key of a run's scores.

    Returns:
        The key, and "main" for the empty one.
    """
    return variant or "main"


def order_sources(names: Iterable[str]) -> tuple[str, ...]:
    """Names of sources or arms without repeats: "natural" first, its other arms next, the rest as they came.

    Args:
        names: Names, with repeats.

    Returns:
        The names in the order of the report; differences are taken from the first.
    """
    unique = dict.fromkeys(names)
    return tuple(sorted(unique, key=lambda name: (name != "natural") + (not f"{name},".startswith("natural,"))))


def group_runs(runs: Sequence[RunView], *, across_k: bool = False) -> list[Group]:
    """Runs put together by data set, fine-tuned blocks and size of the train set; each is told from others of its source.

    Args:
        runs: Any runs.
        across_k: Runs of different k are put together too.

    Returns:
        Groups, by data set as it came, then k, then n.

    Raises:
        UsageError: There is no run, two runs are the same, or runs of a group were not asked the same queries.
    """
    if not runs:
        raise UsageError("There is no run to report; name at least one run folder.")
    marked = [
        run if run.mark == mark else replace(run, mark=mark)
        for run, mark in zip(runs, arm_marks(runs, across_k=across_k), strict=True)
    ]
    data_order = list(dict.fromkeys(run.data for run in runs))
    cells: dict[tuple[int, int, int], list[RunView]] = {}
    for run in marked:
        cells.setdefault((data_order.index(run.data), -1 if across_k else run.k, run.n), []).append(run)
    order = order_sources(run.arm for run in marked)
    groups = [
        Group(data=data_order[d], k=None if across_k else k, n=n, runs=tuple(members), order=order)
        for (d, k, n), members in sorted(cells.items(), key=lambda c: c[0])
    ]
    for group in groups:
        _check(group)
    return groups


def _check(group: Group) -> None:
    seen: dict[tuple[str, int], str] = {}
    first = group.runs[0]
    for run in group.runs:
        place = (run.arm, run.seed)
        if place in seen:
            raise UsageError(
                f"Runs {seen[place]} and {run.name} have the same source, recipe, k, n and seed ({run.arm}, {run.k}, {run.n}, "
                f"{run.seed}); leave one out."
            )
        seen[place] = run.name
        if not np.array_equal(run.main.queries.index, first.main.queries.index):
            raise UsageError(
                f"Runs {first.name} and {run.name} were not asked the same queries, so they cannot be compared; attribute both "
                "on one set."
            )


def stack(tables: Sequence[Table], title: str = "") -> Table:
    """Tables of the same kind below each other.

    Args:
        tables: At least one; a column that one of them lacks becomes NaN (numbers) or "" (text) there.
        title: What the rows of the whole are; the first table's title when not given.

    Returns:
        One table.
    """
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    kinds = {name: next(t[name] for t in tables if name in t.columns).dtype.kind for name in names}

    def column(table: Table, name: str) -> NDArray[Any]:
        if name in table.columns:
            return table[name]
        return np.full(len(table), "" if kinds[name] in "UO" else np.nan)

    joined = {name: np.concatenate([column(table, name) for table in tables]) for name in names}
    return Table(joined, title or (tables[0].title if tables else ""))


def table_of(rows: Sequence[Mapping[str, Any]], title: str, columns: Sequence[str] = ()) -> Table:
    """A table from records.

    Args:
        rows: Records with the same keys.
        title: What the rows are.
        columns: Column names of a table without rows.

    Returns:
        The table.
    """
    names = list(rows[0]) if rows else list(columns)
    return Table({name: np.array([row[name] for row in rows]) for name in names}, title)
