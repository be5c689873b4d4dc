"""What a store says about itself, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from .attributes import read_attributes
from .contents import Contents, read_contents, read_spectrum
from .files import find
from .layout import FIELDS, FORMAT, prefix
from .provenance import digest, plain
from .safe_open import PARTIAL, hdf5_errors, safe_open


def describe(path: str | Path) -> dict[str, Any]:
    """Everything that `upweight info` prints; no score is read, and torch is not imported.

    Args:
        path: A store, complete or not; where only `<path>.partial` is there, that one.

    Returns:
        JSON values: the file, format and version, whether it is complete and its tiles, shapes and type, examples, variants
        with how they were made and the facts of their spectrum, settings with their digest, and shared attributes (versions,
        hashes).
    """
    found, _ = find(Path(path))
    file = safe_open(found, FORMAT)
    with file, hdf5_errors(found):
        contents = read_contents(file)
        done, total = contents.tiles
        facts = {
            "path": str(found),
            "bytes": found.stat().st_size,
            "format": FORMAT,
            "version": contents.version,
            "created": contents.created,
            "complete": contents.complete and not found.name.endswith(PARTIAL),
            "tiles": {"done": done, "total": total},
            "examples": {side: _examples(file, side, contents) for side in contents.counts},
            "variants": {name: _variant(file, name, contents) for name in contents.variants},
            "config": contents.config,
            "config_digest": digest(contents.config),
            **contents.shared,
        }
    return {name: plain(value) for name, value in facts.items()}  # NaN becomes text, which JSON has


def _examples(file: h5py.File, side: str, contents: Contents) -> dict[str, Any]:
    shapes = {name: list(file[side][name].shape) for name in FIELDS if name in file[side]}
    return {"count": contents.counts[side], "kept": shapes}


def _variant(file: h5py.File, name: str, contents: Contents) -> dict[str, Any]:
    group = file[prefix(name) or "/"]
    matrices = {
        matrix.side: {
            "shape": [matrix.grid.rows, matrix.grid.columns],
            "dtype": matrix.dtype,
            "tiles": {"done": int(matrix.finished.sum()), "total": matrix.finished.size},
            "rows_per_tile": matrix.grid.rows_per_tile,
            "columns_per_tile": matrix.grid.columns_per_tile,
        }
        for matrix in contents.matrices
        if matrix.variant == name
    }
    return {"scores": matrices, **read_attributes(group["scores"]), "spectrum": read_spectrum(group)}
