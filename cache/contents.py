"""Reading what a store says about itself, and holding it to that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from .attributes import read_attributes
from .errors import StoreError
from .layout import COUNTS, FIELDS, OPTIONAL, RESERVED, SENSITIVITY, VERSION, Grid, prefix
from .provenance import JSON


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of scores and which of its tiles are there."""

    variant: str
    side: str
    """"queries" or "train"."""
    grid: Grid
    dtype: str
    finished: NDArray[np.uint8]
    """1 for every tile that is done [row blocks, column blocks]; what the file said when it was read."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checked store holds, the arrays aside."""

    version: str
    created: str
    config: dict[str, JSON]
    """The settings that made it what it is."""
    shared: dict[str, JSON]
    """Attributes that hold for every variant."""
    counts: dict[str, int]
    """Number of examples of each side."""
    matrices: tuple[Matrix, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names, "" first."""
        return tuple(sorted({matrix.variant for matrix in self.matrices}))

    @property
    def tiles(self) -> tuple[int, int]:
        """How many are done, and how many there are."""
        return sum(int(m.finished.sum()) for m in self.matrices), sum(m.finished.size for m in self.matrices)

    @property
    def complete(self) -> bool:
        """Whether every tile is done."""
        done, total = self.tiles
        return done == total

    def matrix(self, variant: str, side: str) -> Matrix | None:
        """A matrix.

        Args:
            variant: Name of the variant.
            side: "queries" or "train".

        Returns:
            What is known of it, or None when the file has none.
        """
        return next((m for m in self.matrices if (m.variant, m.side) == (variant, side)), None)


def read_contents(file: h5py.File) -> Contents:
    """Check a file against the format.

    Args:
        file: What `safe_open` gave.

    Returns:
        Its contents; every data set that the format names has the shape and type that belong to it.

    Raises:
        StoreError: The file is of a later format, or not what it says.
    """
    return _READERS[require_version(file, VERSION, known=tuple(_READERS))](file)


def require_version(file: h5py.File, latest: str, known: tuple[int, ...]) -> int:
    """Refuse a file of a format version that this release does not know.

    Args:
        file: What `safe_open` gave.
        latest: The version that is written.
        known: Major versions that are read.

    Returns:
        Its major version.

    Raises:
        StoreError: It is another one, or cannot be read.
    """
    version = read_attributes(file).get("version")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if not major.isdecimal():
        damaged(file, "its format version cannot be read")
    if int(major) not in known:
        raise StoreError(
            f"{file.filename} has format version {version}; this upweight reads versions up to {latest}. "
            + ("Install a newer upweight." if int(major) > max(known) else "Rebuild it with --overwrite.")
        )
    return int(major)


def read_spectrum(group: h5py.Group) -> dict[str, JSON] | None:
    """The facts of a variant's curvature.

    Args:
        group: Where the variant lies.

    Returns:
        The facts by name, the sensitivities together under "sensitivity"; None for a method without a curvature.
    """
    if "spectrum" not in group:
        return None
    facts = read_attributes(group["spectrum"])
    sensitive = [name for name in facts if name.startswith(SENSITIVITY)]
    facts["sensitivity"] = {name.removeprefix(SENSITIVITY): facts.pop(name) for name in sensitive}
    return facts


def _read_1(file: h5py.File) -> Contents:
    attributes = read_attributes(file)
    config = attributes.get("config")
    if not isinstance(config, dict):
        damaged(file, "its settings are missing")
    sides = ["queries"] if "query_count" in attributes else []
    counts = {side: _count(file, attributes, COUNTS[side]) for side in [*sides, "train"]}
    for side, count in counts.items():
        _check_examples(file, side, count)
    matrices = tuple(_matrices(file, counts))
    if not matrices:
        damaged(file, "it holds no scores")
    return Contents(
        version=str(attributes["version"]),
        created=str(attributes.get("created", "")),
        config=config,
        shared={name: value for name, value in attributes.items() if name not in RESERVED},
        counts=counts,
        matrices=matrices,
    )


_READERS = {1: _read_1}


def _matrices(file: h5py.File, counts: dict[str, int]) -> Iterator[Matrix]:
    n = counts["train"]
    named = file.get("variants", {})
    if isinstance(named, h5py.Dataset):
        damaged(file, "variants is no group")
    for variant in ["", *named]:
        base = prefix(variant)
        if not variant and "scores" not in file:
            continue  # a file may hold named variants alone
        main = "queries" if "queries" in counts else "train"
        sides = [side for side in counts if f"{base}scores/{side}" in file]
        if main not in sides:
            damaged(file, f"{base}scores/{main} is missing")
        for side in sides:
            shape = (counts[side], n)
            scores = require_data(file, f"{base}scores/{side}", ("float32", "float64"), shape)
            tiles = require_data(file, f"{base}done/{side}", ("uint8",), None)
            cut = [_count(file, read_attributes(tiles), name) for name in ("rows_per_tile", "columns_per_tile")]
            grid = Grid(*shape, *cut)
            require_data(file, f"{base}done/{side}", ("uint8",), grid.blocks)
            finished = np.asarray(tiles[...])
            if finished.max() > 1:
                damaged(file, f"{base}done/{side} holds other values than 0 and 1")
            yield Matrix(variant, side, grid, scores.dtype.newbyteorder("=").name, finished)


def _check_examples(file: h5py.File, side: str, count: int) -> None:
    for name, (types, axes) in FIELDS.items():
        key = f"{side}/{name}"
        if name in OPTIONAL and key not in file:
            continue
        data = require_data(file, key, types, None)
        if data.ndim != axes or len(data) != count:
            damaged(file, f"{key} has shape {list(data.shape)} for {count} examples")


def require_data(file: h5py.File, key: str, types: tuple[str, ...], shape: tuple[int, ...] | None) -> h5py.Dataset:
    """A data set that the format names.

    Args:
        file: What `safe_open` gave.
        key: Its path.
        types: Types that it may have.
        shape: The shape it must have; None: any.

    Returns:
        The data set.
    """
    if key not in file:
        damaged(file, f"{key} is missing")
    data = file[key]
    if not isinstance(data, h5py.Dataset):
        damaged(file, f"{key} is a group")
    if data.dtype.newbyteorder("=").name not in types:
        damaged(file, f"{key} is {data.dtype.name} and not {' or '.join(types)}")
    if shape is not None and data.shape != shape:
        damaged(file, f"{key} has shape {list(data.shape)} and not {list(shape)}")
    return data


def _count(file: h5py.File, attributes: dict[str, Any], name: str) -> int:
    value = attributes.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        damaged(file, f"its attribute {name} is {value!r} and not a number of at least 1")
    return value


def damaged(file: h5py.File, what: str) -> NoReturn:
    """Refuse a file that is not what it says.

    Args:
        file: The file.
        what: What is wrong with it.

    Raises:
        StoreError: Always.
    """
    raise StoreError(f"{file.filename} is damaged: {what}. Rebuild it with --overwrite.")
