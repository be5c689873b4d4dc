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
from .errors import SolveError
from .examples import Examples, Progress, Reader, Source, spread
from .problem import Loss, Problem, make_problem
from .ranking import largest_columns
from .side import QueryLabel, Side, examine
from .spectrum import Spectrum
from .stationarity import stationarity

SIGN = "+ g_query^T H^+ g_train; positive = helpful: removing the example raises the query's loss by about score / n"
DOT_SIGN = "+ g_query^T g_train; positive = helpful: a gradient step on the example lowers the query's loss"
ROW_BYTES = 2**26  # of solved queries in flight
COLUMN_BYTES = 2**28  # of train gradients in flight
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


def fit(prepared: Prepared, variant: Variant, progress: Progress | None = None) -> Fitted:
    """Form and factor the curvature of one variant, and see how much its damping or cutoff matters.

    Args:
        prepared: Both sides.
        variant: What to score with.
        progress: Told before and after.

    Returns:
        The fit with the facts of its spectrum.
    """
    if progress is not None:
        progress("curvature", 0, 1)
    curvature = variant.curvature
    state = curvature.fit(prepared.train)
    spectrum = curvature.spectrum(state)
    if spectrum is not None:
        spectrum = replace(spectrum, sensitivity=_sensitivity(prepared, variant, state))
    if progress is not None:
        progress("curvature", 1, 1)
    return Fitted(prepared, variant, state, spectrum)


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


def write_scores(fitted: Fitted, sink: Sink, grid: tuple[int, int], progress: Progress | None = None) -> None:
    """Compute every tile that is not there yet.

    Args:
        fitted: The variant.
        sink: Where tiles go.
        grid: Rows and columns of a tile.
        progress: Told after each tile; tiles found finished count.

    Raises:
        SolveError: A score is NaN or infinite; nothing of that tile is written.
    """
    prepared = fitted.prepared
    for side_name, shape in fitted.shapes.items():
        rows_of = prepared.side(side_name, fitted.variant.query_label)
        stage = f"score {side_name}" + (f" ({fitted.variant.name})" if fitted.variant.name else "")
        total = -(-shape[0] // grid[0]) * -(-shape[1] // grid[1])
        done = 0
        for i, rows in enumerate(_blocks(shape[0], grid[0])):
            solved = None
            for j, columns in enumerate(_blocks(shape[1], grid[1])):
                if not sink.done(side_name, i, j):
                    if solved is None:
                        solved = fitted.variant.curvature.solve(fitted.state, rows_of, rows)
                    tile = fitted.variant.curvature.scores(fitted.state, solved, prepared.train, columns)
                    if not bool(torch.isfinite(tile).all()):
                        raise SolveError(
                            f"A score of {side_name} {rows.start} to {rows.stop} is NaN or infinite; raise the damping or cutoff."
                        )
                    sink.write(side_name, rows, columns, tile.cpu().numpy(), (i, j))
                done += 1
                if progress is not None:
                    progress(stage, done, total)


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
