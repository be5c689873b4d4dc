"""What a result rests on: settings as canonical JSON and their digest, array hashes, library versions."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import UsageError, __version__

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "h5py")
SHOWN = 64
"""Longest value printed in a mismatch message; longer ones are named by their hash."""
_HASH_ROWS = 4096


def plain(value: Any) -> JSON:
    """A value as JSON has it.

    Args:
        value: None, a number (numpy's too), text, a path, an array, a dataclass instance, or mappings and sequences of them.

    Returns:
        The same in dictionaries with text keys, lists, text and numbers; NaN and infinities, which JSON lacks, become the
        text that `float()` reads back.

    Raises:
        UsageError: Something else is in there.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    raise UsageError(
        f"A setting is a {type(value).__name__}, which no file can hold; give numbers, text, lists or mappings."
    )


def canonical(value: Any) -> str:
    """One text for equal settings: sorted keys, no spaces, and 1.0 written as 1.

    Args:
        value: Anything `plain` takes.

    Returns:
        JSON text.
    """
    return json.dumps(_merge_numbers(plain(value)), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(settings: Any) -> str:
    """Name of some settings.

    Args:
        settings: Anything `plain` takes.

    Returns:
        SHA-256 of the canonical JSON, 64 hexadecimal digits.
    """
    return hashlib.sha256(canonical(settings).encode()).hexdigest()


def differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Where two settings differ.

    Args:
        held: What a file was made with.
        asked: What is wanted now.

    Returns:
        (dotted name, value held, value asked) in the order of the names; a value that one side lacks reads "(not set)".
    """
    one, other = _flatten(plain(held)), _flatten(plain(asked))
    return [
        (name, _shown(one, name), _shown(other, name))
        for name in sorted({*one, *other})
        if name not in one or name not in other or canonical(one[name]) != canonical(other[name])
    ]


def array_hash(array: Any) -> str:
    """Name of an array's content, read in blocks of rows.

    Args:
        array: A numpy array or a stored data set, at least one axis.

    Returns:
        SHA-256 over type, shape and values, 64 hexadecimal digits; equal on machines of either byte order.
    """
    dtype = np.dtype(array.dtype).newbyteorder("<")
    sha = hashlib.sha256(f"{dtype.str} {list(array.shape)}".encode())
    for start in range(0, len(array), _HASH_ROWS):
        block: NDArray[Any] = np.ascontiguousarray(array[start : start + _HASH_ROWS], dtype=dtype)
        sha.update(block.tobytes())
    return sha.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of everything whose change could move a number.

    Returns:
        Name to version; a library that is not installed is left out. Nothing is imported for it.
    """
    versions = {"upweight": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _merge_numbers(value: JSON) -> JSON:
    """0.0 and 0 are one setting, whether it was typed, read from TOML or is a default."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_merge_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _merge_numbers(item) for key, item in value.items()}
    return value


def _flatten(value: JSON, name: str = "") -> dict[str, JSON]:
    """Dotted names down to the values; a list of mappings is numbered, any other list is one value."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict) or (name and not value):
        return {name: value}
    flat: dict[str, JSON] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{name}.{key}" if name else key)
    return flat


def _shown(flat: Mapping[str, JSON], name: str) -> str:
    if name not in flat:
        return "(not set)"
    value = flat[name]
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= SHOWN:
        return text
    size = f"{len(value)} values" if isinstance(value, list) else f"{len(text)} characters"
    return f"({size}, sha256 {digest(value)[:12]})"
