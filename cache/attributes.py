"""Settings and facts as HDF5 attributes: plain scalars, and JSON text for everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from .errors import StoreError
from .provenance import JSON, plain

SUFFIX = "_json"
"""An attribute whose name ends so holds JSON text; the suffix is no part of the name that a reader sees."""


def write_attributes(target: h5py.Group | h5py.Dataset, values: Mapping[str, Any]) -> None:
    """Attach values to a group or data set.

    Args:
        target: Where.
        values: Name to anything `plain` takes. Text, whole numbers, floats (NaN too) and truth values are stored as such.
    """
    for name, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, bool):
            target.attrs[name] = np.bool_(value)
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target.attrs[name] = np.int64(value)
        elif isinstance(value, float):
            target.attrs[name] = np.float64(value)
        elif isinstance(value, str) and not name.endswith(SUFFIX) and _storable(value):
            target.attrs[name] = value
        else:
            target.attrs[name + SUFFIX] = json.dumps(plain(value), allow_nan=False)


def read_attributes(source: h5py.Group | h5py.Dataset) -> dict[str, JSON]:
    """The inverse of `write_attributes`.

    Args:
        source: A group or data set of a file that `safe_open` has checked.

    Returns:
        Name to plain Python value, in the order of the names.

    Raises:
        StoreError: JSON text cannot be read.
    """
    values: dict[str, JSON] = {}
    for name in sorted(source.attrs):
        value = source.attrs[name]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if name.endswith(SUFFIX):
            try:
                values[name.removesuffix(SUFFIX)] = json.loads(value)
            except (ValueError, TypeError, RecursionError) as error:
                raise StoreError(
                    f"{source.file.filename} is damaged: the attribute {name} of {source.name} is not JSON text. "
                    "Rebuild the file with --overwrite."
                ) from error
        else:
            values[name] = value
    return values


def _storable(text: str) -> bool:
    """HDF5 text ends at the first NUL, and is UTF-8."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False
