"""Settings and facts as HDF5 attributes: plain scalars, and JSON text for everything else.

Text has a fixed length. Text of variable length, h5py's habit, lies in HDF5's global heap, where a few wrong bytes make the
library loop for ever; `safe_open` refuses it.
"""

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
LONG = "attributes"
"""Group for text that is too long for an attribute, as bytes under the attribute's name."""
LIMIT = 32_768
"""Longest text in bytes that stays an attribute; HDF5 takes no attribute above 64 kB."""


def write_attributes(target: h5py.Group | h5py.Dataset, values: Mapping[str, Any]) -> None:
    """Attach values to a group or data set.

    Args:
        target: Where; long text needs a group.
        values: Name to anything `plain` takes. Text, whole numbers, floats (NaN too) and truth values are stored as such.
    """
    for name, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        if name.endswith(SUFFIX):  # a name of ours: only JSON text may bear it
            _write_text(target, name + SUFFIX, json.dumps(plain(value), allow_nan=False))
        elif isinstance(value, bool):
            target.attrs[name] = np.bool_(value)
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target.attrs[name] = np.int64(value)
        elif isinstance(value, float):
            target.attrs[name] = np.float64(value)
        elif isinstance(value, str) and _storable(value):
            _write_text(target, name, value)
        else:
            _write_text(target, name + SUFFIX, json.dumps(plain(value), allow_nan=False))


def read_attributes(source: h5py.Group | h5py.Dataset) -> dict[str, JSON]:
    """The inverse of `write_attributes`.

    Args:
        source: A group or data set of a file that `safe_open` has checked.

    Returns:
        Name to plain Python value, in the order of the names.

    Raises:
        StoreError: JSON text cannot be read.
    """
    stored = dict(source.attrs)
    if isinstance(source, h5py.Group) and isinstance(source.get(LONG), h5py.Group):
        stored |= {name: np.asarray(item[...]).tobytes() for name, item in source[LONG].items() if _is_text(item)}
    values: dict[str, JSON] = {}
    for name in sorted(stored):
        value = stored[name]
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


def _write_text(target: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    content = text.encode()
    if len(content) > LIMIT:
        target.require_group(LONG)[name] = np.frombuffer(content, dtype=np.uint8)
        return
    target.attrs.create(name, content, dtype=h5py.string_dtype("utf-8", max(len(content), 1)))


def _is_text(item: h5py.Group | h5py.Dataset) -> bool:
    return isinstance(item, h5py.Dataset) and item.dtype == np.uint8


def _storable(text: str) -> bool:
    """HDF5 text ends at the first NUL, and is UTF-8."""
    try:
        return "\0" not in text and text.encode() is not None
    except UnicodeEncodeError:
        return False
