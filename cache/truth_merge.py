"""Ground truths that grow: what a file holds of an experiment, and one that holds more of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ForeignFile, StoreError
from .files import incomplete
from .identity import refuse_other
from .provenance import array_hash
from .safe_open import PARTIAL, hdf5_errors, safe_open
from .truth_layout import EXAMPLES, FORMAT, OUTPUTS, PENDING, Held, Known, Refits, read_held


def identity(settings: Any, refits: Refits) -> dict[str, Any]:
    """What decides whether refits may stand in one file.

    Args:
        settings: What decides the results, as JSON has it.
        refits: The examples and parts.

    Returns:
        All of it by name.
    """
    examples = {name.replace("_", " "): array_hash(np.asarray(getattr(refits, name))) for name in EXAMPLES}
    return {"settings": settings, "repeats": refits.seed.shape[1], **examples}


def read_parts(path: Path, wanted: Mapping[str, Any], overwrite: bool) -> tuple[Held, Known] | None:
    """What a file holds of an experiment.

    Args:
        path: A complete or a partial file, or a free name.
        wanted: What `identity` gave.
        overwrite: A file of another experiment, or a damaged one, may be replaced.

    Returns:
        Its refits; None where there is none, or it may be replaced.

    Raises:
        StoreError: The file is damaged.
        ForeignFile: It is not a ground truth, and is never replaced.
    """
    with hdf5_errors(path):
        if not path.exists():
            return None
    try:
        with safe_open(path, FORMAT) as file, hdf5_errors(path):
            held = read_held(file)
            refuse_other(path, identity(held.config, held.refits), wanted)
            if PENDING in held.state and not path.name.endswith(PARTIAL):
                raise StoreError(incomplete(path, *held.done, "refits"))
            return held, Known(state=held.state, outputs={name: file[name][...] for name in OUTPUTS})
    except ForeignFile:
        raise
    except StoreError:
        if not overwrite:
            raise
        return None


def goes_on(begun: Held, asked: Refits) -> bool:
    """Whether a partial file has a place for all that is asked for, and nothing else to be done.

    Args:
        begun: The partial file.
        asked: What is asked for.

    Returns:
        Whether it can be gone on with as it is.
    """
    keys = begun.refits.keys
    idle = {key for key, state in zip(keys, begun.state, strict=True) if PENDING in state} - {*asked.keys}
    return {*asked.keys} <= {*keys} and not idle


def grown(asked: Refits, found: list[tuple[Held, Known]]) -> tuple[Refits, Known]:
    """A larger file: what is asked for, then whatever else is there whole.

    Args:
        asked: What is asked for.
        found: The files that are there.

    Returns:
        All parts, and what is known of them.
    """
    parts = {key: (asked.kept[j], asked.seed[j]) for j, key in enumerate(asked.keys)}
    sources: dict[bytes, tuple[Known, int]] = {}
    for held, known in found:
        for j, key in enumerate(held.refits.keys):
            before = sources.get(key)
            if before is None or (before[0].state[before[1]] == PENDING).sum() > (known.state[j] == PENDING).sum():
                sources[key] = known, j
            if PENDING not in known.state[j]:
                parts.setdefault(key, (held.refits.kept[j], held.refits.seed[j]))
    every = asked.parts(*(np.stack(column) for column in zip(*parts.values(), strict=True)))
    J, r, m = every.shape
    state = np.full((J, r), PENDING, dtype=np.uint8)
    outputs = {name: np.full((J * r, m), np.nan) for name in OUTPUTS}
    for j, key in enumerate(parts):
        if key in sources:
            known, row = sources[key]
            state[j] = known.state[row]
            for name, values in outputs.items():
                values[j * r : (j + 1) * r] = known.outputs[name][row * r : (row + 1) * r]
    return every, Known(state=state, outputs=outputs)
