"""From a model and two sets of examples to tiles of scores: prepare once, fit every variant, write tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import UsageError
from .check import check_batch_independence
from .curvature import Curvature
from .damping import each, variant_name
from .errors import SolveError
from .examples import Examples, Progress, Reader, Source, spread
from .per_example import gradient_plan
from .problem import Loss, Problem, make_problem
from .ranking import largest_columns
from .side import QueryLabel, Side, examine
from .spectrum import Spectrum
from .stationarity import stationarity
from .work import ANY, Work

SIGN = "+ g_query^T H^+ g_train; positive = helpful: removing the example raises the query's loss by about score / n"
DOT_SIGN = "+ g_query^T g_train; positive = helpful: a gradient step on the example lowers the query's loss"
ROW_BYTES = 2**26  # of solved queries in flight
COLUMN_BYTES = 2**28  # of train gradients in flight
NAMED = 3  # variants whose names progress shows
SAMPLE, RUN = 128, 32  # queries whose neighbours are compared at other dampings, in evenly spread runs


@runtime_checkable
class Sink(Protocol):
    """Where tiles go: arrays in memory, or a store."""

    def done(self, side: str, row_block: int, column_block: int) -> bool:
        """Whether a tile is there already.

        Args:
            side: "queries" or "train".
            row_block: Position of the tile down the grid.
            column_block: Position across.
        """

    def write(self, side: str, rows: slice, columns: slice, tile: NDArray[Any], block: tuple[int, int]) -> None:
        """Take a tile.

        Args:
            side: "queries" or "train".
            rows: Its queries.
            columns: Its train examples.
            tile: Scores [rows, columns].
            block: Its position on the grid.
        """


class ArraySink:
    """Tiles into arrays in memory.

    Args:
        shapes: Shape of the matrix of every side that will be written.
        dtype: "float32" or "float64".
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], dtype: str) -> None:
        self.matrices = {side: np.full(shape, np.nan, dtype=dtype) for side, shape in shapes.items()}

    def done(self, side: str, row_block: int, column_block: int) -> bool:
        """Nothing is there before it is written.

        Args:
            side: "queries" or "train".
            row_block: Position of the tile down the grid.
            column_block: Position across.

        Returns:
            False.
        """
        return False

    def write(self, side: str, rows: slice, columns: slice, tile: NDArray[Any], block: tuple[int, int]) -> None:
        """Put a tile in its place.

        Args:
            side: "queries" or "train".
            rows: Its queries.
            columns: Its train examples.
            tile: Scores [rows, columns].
            block: Its position on the grid; not needed here.
        """
        self.matrices[side][rows, columns] = tile


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Both sides examined; everything that does not depend on the curvature."""

    problem: Problem
    train: Side
    queries: Side | None
    """None: the train set is scored on itself alone."""
    facts: dict[str, Any]
    """What to state beside any score: parameters analysed, stationarity, warnings."""

    def side(self, name: str, query_label: QueryLabel) -> Side:
        """A side with its losses taken at the wanted label.

        Args:
            name: "queries" or "train".
            query_label: "true" or "predicted".

        Returns:
            The side as the rows of a matrix.
        """
        side = self.queries if name == "queries" and self.queries is not None else self.train
        if query_label == "true":
            return side
        prediction = side.logits.argmax(1)
        residual = self.problem.output_losses(side.logits, prediction)[1]
        return replace(side, target=prediction, residual=residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to score: a curvature and the label at which the loss of a query is taken."""

    curvature: Curvature[Any]
    query_label: QueryLabel = "true"
    train_scores: bool = False
    """Score the train set on itself too."""
    name: str = ""
    """Empty for the main scores of a run."""

    def __post_init__(self) -> None:
        if self.query_label not in ("true", "predicted"):
            raise UsageError(f"query_label must be 'true' or 'predicted', got {self.query_label!r}.")

    def each_damping(self) -> list[Variant]:
        """One variant for every damping of the curvature.

        Returns:
            The first under this variant's own name, the others called after their damping; of a single one the variant itself.
        """
        several = each(getattr(self.curvature, "damping", None))
        if len(several) == 1:
            return [self]
        names = [self.name, *map(variant_name, several[1:])]
        return [
            replace(self, curvature=replace(self.curvature, damping=damping), name=name)  # type: ignore[type-var]
            for damping, name in zip(several, names, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A variant with its factored curvature."""

    prepared: Prepared
    variant: Variant
    state: Any
    spectrum: Spectrum | None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every matrix it fills, by side."""
        n = len(self.prepared.train)
        queries = self.prepared.queries
        shapes = {} if queries is None else {"queries": (len(queries), n)}
        if self.variant.train_scores or queries is None:
            shapes["train"] = (n, n)
        return shapes

    def meta(self) -> dict[str, Any]:
        """How these scores were made, ready for JSON.

        Returns:
            Curvature, label, unit, sign and the facts of the run.
        """
        return {
            "curvature": self.variant.curvature.settings(),
            "query_label": self.variant.query_label,
            "unit": self.variant.curvature.unit,
            "sign": DOT_SIGN if self.spectrum is None else SIGN,
            **self.prepared.facts,
            "warnings": [*self.prepared.facts["warnings"], *self.variant.curvature.warnings(self.state)],
        }


def prepare(
    model: nn.Module,
    train: Source,
    queries: Source | None,
    *,
    parameters: Sequence[str],
    head: str | None,
    loss: Loss | None,
    dtype: torch.dtype | None,
    device: torch.device,
    batch_size: int,
    weight_decay: float | None,
    train_index: Sequence[int] | None = None,
    query_index: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Read the model, check that single examples mean something to it, and run it once over both sides.

    Args:
        model: Any module from inputs [b, ...] to logits [b, C], in eval mode (`evaluating`).
        train: The train set.
        queries: The queries; None for the train set on itself.
        parameters: Names of the analysed parameters.
        head: Name of the last linear layer, when there is one.
        loss: None for cross-entropy, else a function of (logits, labels) that gives each example's loss.
        dtype: Type to compute in; None: the model's.
        device: Where to compute.
        batch_size: Examples in a forward pass.
        weight_decay: L2 penalty of the training run, when known, for the report on stationarity.
        train_index: Ids of the train examples; None: their positions.
        query_index: Ids of the queries; None: their positions.
        progress: Told after each block.

    Returns:
        Both sides, examined.

    Raises:
        UsageError: The batch size is below 1, or the weight decay is negative or not finite.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    if weight_decay is not None and not 0 <= weight_decay < float("inf"):  # catches NaN too
        raise UsageError(f"weight_decay must be a finite number >= 0, got {weight_decay}.")
    problem = make_problem(
        model, parameters, head=head, loss=loss, dtype=dtype, device=device, weight_decay=weight_decay
    )
    reader = Reader(train, "train")
    check_batch_independence(problem, reader)
    side = examine(problem, reader, index=train_index, batch_size=batch_size, progress=progress)
    others = None
    if queries is not None:
        others = examine(
            problem, Reader(queries, "queries"), index=query_index, batch_size=batch_size, progress=progress
        )
    if not problem.linear:
        plan = gradient_plan(problem, side.inputs(slice(0, min(2, len(side)))), side.num_classes)
        side = replace(side, plan=plan)
        others = None if others is None else replace(others, plan=plan)
    facts = {
        "parameters": list(parameters),
        "p": problem.p,
        "num_classes": side.num_classes,
        "n": len(side),
        "head_bias": head is not None and problem.head_parameters[1] is not None,
        "weight_decay": weight_decay,
        **stationarity(side, weight_decay),
    }
    return Prepared(problem, side, others, facts)


def fit(
    prepared: Prepared,
    variant: Variant,
    progress: Progress | None = None,
    *,
    before: Sequence[Fitted] = (),
    work: Work = ANY,
) -> Fitted:
    """Form and factor the curvature of one variant, and see how much its damping or cutoff matters.

    Args:
        prepared: Both sides.
        variant: What to score with.
        progress: Told before and after.
        before: Variants that were fitted already: what one of them at another damping has in common with this is taken over.
        work: Memory, keeper of tiles, whom to tell.

    Returns:
        The fit with the facts of its spectrum.
    """
    stage = _stage("curvature", [variant])
    if progress is not None:
        progress(stage, 0, 1)
    curvature = variant.curvature
    akin = [one for one in before if one.prepared is prepared and _akin(one.variant.curvature, curvature)]
    state = next((one.state for one in akin if one.variant.curvature.settings() == curvature.settings()), None)
    if state is None:  # not merely another label of the queries
        state = curvature.fit(prepared.train, like=akin[0].state if akin else None, work=work)
    spectrum = curvature.spectrum(state)
    if spectrum is not None:
        spectrum = replace(spectrum, sensitivity=_sensitivity(prepared, variant, state))
    if progress is not None:
        progress(stage, 1, 1)
    return Fitted(prepared, variant, state, spectrum)


def _akin(one: Curvature[Any], other: Curvature[Any]) -> bool:
    """Whether two curvatures differ in their damping alone."""
    settings, others = ({**curvature.settings(), "damping": None} for curvature in (one, other))
    return type(one) is type(other) and settings == others


def _stage(what: str, variants: Sequence[Variant]) -> str:
    """What progress is told: nothing is added for the main scores alone."""
    names = [variant.name or "main" for variant in variants]
    if names == ["main"]:
        return what
    return f"{what} ({', '.join(names) if len(names) <= NAMED else f'{names[0]} and {len(names) - 1} more'})"


def tile_shape(p: int) -> tuple[int, int]:
    """Rows and columns of a tile: whole chunks of the store, within a budget of memory.

    Args:
        p: Number of analysed parameters.

    Returns:
        Rows, a multiple of 128 up to 2,048; columns, a multiple of 512 up to 4,096.
    """
    row = 8 * p
    rows = 128 * max(1, min(16, ROW_BYTES // (128 * row)))
    columns = 512 * max(1, min(8, COLUMN_BYTES // (512 * row)))
    return rows, columns


def write_scores(
    fitted: Sequence[Fitted], sinks: Mapping[str, Sink], grid: tuple[int, int], progress: Progress | None = None
) -> None:
    """Compute every tile that is not there yet.

    A block of queries is scored by every variant that it is the same block for, then comes the next block: what such variants
    share (the inner products with the train set, at whatever damping) is computed once.

    Args:
        fitted: The variants.
        sinks: Where the tiles of each go, by its name.
        grid: Rows and columns of a tile.
        progress: Told after each tile; tiles found finished count.
    """
    together: dict[tuple[int, str, str], list[Fitted]] = {}
    for one in fitted:
        for side in one.shapes:
            together.setdefault((id(one.prepared), one.variant.query_label, side), []).append(one)
    for (_, _, side), variants in together.items():
        _write_side(side, variants, sinks, grid, progress)


def _write_side(
    side: str, fitted: Sequence[Fitted], sinks: Mapping[str, Sink], grid: tuple[int, int], progress: Progress | None
) -> None:
    """The matrices of one side, of variants that take its losses at one label."""
    prepared, (m, n) = fitted[0].prepared, fitted[0].shapes[side]
    queries = prepared.side(
        side, fitted[0].variant.query_label
    )  # one object: what is kept for it is looked up by identity
    stage, done = _stage(f"score {side}", [one.variant for one in fitted]), 0
    row_blocks, column_blocks = [*_blocks(m, grid[0])], [*_blocks(n, grid[1])]
    for i, rows in enumerate(row_blocks):
        for one in fitted:
            sink, solved = sinks[one.variant.name], None
            for j, columns in enumerate(column_blocks):
                if not sink.done(side, i, j):
                    if solved is None:
                        solved = one.variant.curvature.solve(one.state, queries, rows)
                    tile = one.variant.curvature.scores(one.state, solved, prepared.train, columns)
                    sink.write(side, rows, columns, _finite(tile, f"{side} {rows.start} to {rows.stop}"), (i, j))
                done += 1
                if progress is not None:
                    progress(stage, done, len(row_blocks) * len(column_blocks) * len(fitted))


def _finite(tile: torch.Tensor, what: str) -> NDArray[Any]:
    if not bool(torch.isfinite(tile).all()):
        raise SolveError(f"A score of {what} is NaN or infinite; raise the damping or cutoff.")
    array: NDArray[Any] = tile.cpu().numpy()
    return array


def examples(prepared: Prepared) -> tuple[Examples | None, Examples]:
    """What is kept of both sides.

    Args:
        prepared: Both sides.

    Returns:
        Queries (None for the train set on itself) and train set.
    """
    return None if prepared.queries is None else prepared.queries.examples, prepared.train.examples


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _sensitivity(prepared: Prepared, variant: Variant, state: Any) -> dict[str, float]:
    """How many first and first five neighbours of a sample of queries move at other dampings or cutoffs."""
    every = variant.curvature.neighbours(state)
    same = {f"top{k}_changed_at_{name}": 0.0 for name, one in every.items() if one is state for k in (1, 5)}
    others = {name: one for name, one in every.items() if one is not state}
    on_itself = prepared.queries is None
    side = prepared.side("queries", variant.query_label)
    blocks = spread(len(side), SAMPLE, RUN)
    k = min(5, len(prepared.train) - on_itself)
    if k < 1 or not others:
        return same if k > 0 else {}

    def first(state: Any, rows: slice) -> NDArray[np.int64]:
        solved = variant.curvature.solve(state, side, rows)
        tile = variant.curvature.scores(state, solved, prepared.train, slice(0, len(prepared.train)))
        scores = tile.cpu().numpy()
        if on_itself:
            scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = -np.inf
        return largest_columns(scores, k)

    # block by block, so that what does not depend on the damping is there for the next state
    found = [{name: first(one, rows) for name, one in {"": state, **others}.items()} for rows in blocks]
    base = np.concatenate([block[""] for block in found])
    out = same
    for name in others:
        there = np.concatenate([block[name] for block in found])
        kept = (base[:, :, None] == there[:, None, :]).any(2)
        out[f"top1_changed_at_{name}"] = float((base[:, 0] != there[:, 0]).mean())
        out[f"top5_changed_at_{name}"] = float(1 - kept.mean())
    return out
