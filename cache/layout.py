"""What lies where in a store (docs/format.md), and the making of a new file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from .. import UsageError
from .attributes import write_attributes
from .provenance import digest, library_versions, plain
from .safe_open import TYPES

if TYPE_CHECKING:
    from ..influence.examples import Examples
    from ..influence.spectrum import Spectrum

FORMAT = "upweight-influence"
VERSION = "1.0"
UNIT = "nats per unit weight"
SIGN = "+g_query H^+ g_train; positive = helpful"
CHUNKS = (128, 512)
SENSITIVITY = "sensitivity."
"""Before the names of the attributes that say how much damping and cutoff matter."""
NAME = re.compile(r"\w[\w.=+-]{0,63}")
"""What a variant may be called: damping=0.01 too. A group called . or .. would be another one to HDF5."""
RESERVED = ("format", "version", "created", "config", "config_digest", "query_count", "train_count")
"""Names that shared attributes may not take."""
FIELDS = {
    "index": (("int64",), 1),
    "label": (("int64",), 1),
    "prediction": (("int64",), 1),
    "loss": (("float64",), 1),
    "residual": (("float64",), 2),
    "features": (("float32", "float64"), 2),
}
"""What is kept of every example: types and number of axes; the last two may be absent."""
OPTIONAL = ("residual", "features")


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantLayout:
    """One set of scores in a file that can hold several of the same examples."""

    name: str
    """"" for the scores at the root of the file; any other lie under `variants/<name>`."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """How they are made: curvature, settings, query_label, warnings, ..."""
    spectrum: Spectrum | None = None
    """Facts of the curvature; None for a method without one."""
    train_scores: bool = False
    """Whether the train set on itself is kept too; it always is in a file without queries."""

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise UsageError(
                "A variant's name is made of at most 64 letters, digits, - _ = . and +, a letter or digit first; got "
                f"{self.name!r}."
            )


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix cut into tiles; those at the right and lower edge may be smaller."""

    rows: int
    columns: int
    rows_per_tile: int
    columns_per_tile: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.rows_per_tile, self.columns_per_tile) < 1:
            raise UsageError(f"Tiles and the matrix they cut must have at least one row and column, got {self}.")

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of tiles down and across."""
        return -(-self.rows // self.rows_per_tile), -(-self.columns // self.columns_per_tile)

    def slices(self, row_block: int, column_block: int) -> tuple[slice, slice]:
        """Where a tile lies.

        Args:
            row_block: Its place down.
            column_block: Its place across.

        Returns:
            Rows and columns of the matrix.
        """
        top, left = row_block * self.rows_per_tile, column_block * self.columns_per_tile
        return (
            slice(top, min(top + self.rows_per_tile, self.rows)),
            slice(left, min(left + self.columns_per_tile, self.columns)),
        )


def prefix(variant: str) -> str:
    """Where a variant's groups lie.

    Args:
        variant: Its name.

    Returns:
        "" or "variants/<name>/".
    """
    return f"variants/{variant}/" if variant else ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a new file will ever hold, but for the scores themselves."""

    queries: Examples | None
    """None: the train set on itself."""
    train: Examples
    variants: tuple[VariantLayout, ...]
    attributes: Mapping[str, Any]
    """What holds for all variants."""
    config: Mapping[str, Any]
    """Settings that make the file what it is."""
    dtype: str
    """Type of the scores."""
    rows_per_tile: int
    columns_per_tile: int

    def __post_init__(self) -> None:
        taken = sorted({*RESERVED} & {*self.attributes})
        if taken:
            raise UsageError(f"The attribute {taken[0]} is the format's own; choose another name.")
        names = [variant.name for variant in self.variants]
        if not names or len({*names}) < len(names):
            raise UsageError(f"A store holds one or more variants of different names, got {names}.")

    @property
    def sides(self) -> dict[str, Examples]:
        """The examples that are kept, by side; those that main scores have as rows come first."""
        return {"train": self.train} if self.queries is None else {"queries": self.queries, "train": self.train}

    def grids(self, variant: VariantLayout) -> dict[str, Grid]:
        """The matrices of a variant.

        Args:
            variant: One of `variants`.

        Returns:
            How each is cut, by side.
        """
        n, tile = len(self.train), (self.rows_per_tile, self.columns_per_tile)
        sides = self.sides
        return {
            side: Grid(len(examples), n, *tile)
            for side, examples in sides.items()
            if side == "queries" or variant.train_scores or len(sides) == 1
        }

    def size_on_disk(self) -> int:
        """Bytes of all arrays, rounded up to whole chunks.

        Returns:
            A little less than the size of the file.
        """
        size = sum(np.asarray(values).nbytes for examples in self.sides.values() for _, values in _kept(examples))
        for variant in self.variants:
            for grid in self.grids(variant).values():
                whole = [
                    -(-length // c) * c for length, c in zip((grid.rows, grid.columns), _chunks(grid), strict=True)
                ]
                size += whole[0] * whole[1] * np.dtype(self.dtype).itemsize
        return size

    def lay_out(self, file: h5py.File) -> None:
        """Make all groups, attributes and data sets, the scores as NaN.

        Every chunk gets its place now, so that writing a tile later overwrites plain data and never the structure around it:
        a process killed at that moment leaves a sound file.

        Args:
            file: A new file.
        """
        own = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": plain(self.config),
            "config_digest": digest(self.config),
            **{COUNTS[side]: len(examples) for side, examples in self.sides.items()},
        }
        write_attributes(file, {"versions": library_versions(), **self.attributes, **own})
        for side, examples in self.sides.items():
            for name, values in _kept(examples):
                types, _ = FIELDS[name]
                values = np.asarray(values)
                file[f"{side}/{name}"] = values.astype(values.dtype if values.dtype.name in types else types[0])
        for variant in self.variants:
            self._lay_out_variant(file.require_group(prefix(variant.name) or "/"), variant)

    def _lay_out_variant(self, group: h5py.Group, variant: VariantLayout) -> None:
        scores, done = group.create_group("scores"), group.create_group("done")
        facts = {"unit": UNIT, "sign": SIGN, **variant.attributes}
        write_attributes(scores, facts)
        for side, grid in self.grids(variant).items():
            matrix = allocate(scores, side, (grid.rows, grid.columns), self.dtype, _chunks(grid), np.nan)
            axes = "query,train" if side == "queries" else "train,train"
            write_attributes(matrix, {"axes": axes, "unit": facts["unit"], "sign": facts["sign"]})
            tiles = allocate(done, side, grid.blocks, "uint8", grid.blocks, 0)
            cut = {"rows_per_tile": grid.rows_per_tile, "columns_per_tile": grid.columns_per_tile}
            write_attributes(tiles, cut)
        if variant.spectrum is not None:
            facts = variant.spectrum.to_dict()
            facts |= {f"{SENSITIVITY}{name}": value for name, value in facts.pop("sensitivity").items()}
            spectrum = group.create_group("spectrum")
            write_attributes(spectrum, facts)
            if variant.spectrum.eigenvalues is not None:
                spectrum["eigenvalues"] = np.asarray(variant.spectrum.eigenvalues, dtype=np.float64)


COUNTS = {"queries": "query_count", "train": "train_count"}


def _kept(examples: Examples) -> Iterator[tuple[str, Any]]:
    for name in FIELDS:
        if getattr(examples, name) is not None:
            yield name, getattr(examples, name)


def _chunks(grid: Grid) -> tuple[int, int]:
    return min(CHUNKS[0], grid.rows), min(CHUNKS[1], grid.columns)


def allocate(
    group: h5py.Group, name: str, shape: tuple[int, int], dtype: str, chunks: tuple[int, int], fill: float
) -> h5py.Dataset:
    """A data set whose bytes are all written at once.

    Args:
        group: Where it lies.
        name: Its name there.
        shape: Its shape.
        dtype: A name of `safe_open.TYPES`.
        chunks: How it is cut.
        fill: What it holds at first.

    Returns:
        The data set.
    """
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk(chunks)
    made.set_fill_value(np.array(fill, dtype))
    made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    made.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)  # really written, so that a full disk shows now and not hours later
    made.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), TYPES[dtype][0], space, made))
