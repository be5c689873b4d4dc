"""Which results may be continued or returned: those of the same settings, weights, examples and form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from .contents import Contents
from .errors import StoreMismatch
from .layout import VariantLayout
from .provenance import array_hash, differences, plain

if TYPE_CHECKING:
    from ..influence.examples import Examples

SHOWN = 4
"""Most differences that a message names."""


def asked_for(
    queries: Examples | None,
    train: Examples,
    variants: Sequence[VariantLayout],
    attributes: Mapping[str, Any],
    config: Mapping[str, Any],
    dtype: str,
) -> dict[str, Any]:
    """What decides the scores of a run, and the form they are stored in.

    Args:
        queries: The queries; None: the train set on itself.
        train: The train set.
        variants: The sets of scores.
        attributes: Shared attributes; of these the `hashes` count.
        config: The settings.
        dtype: Type of the scores.

    Returns:
        Settings and everything else by name, to be compared with `held_by`.
    """
    sides = {"train": train} if queries is None else {"queries": queries, "train": train}
    always = [next(iter(sides))]
    return {
        "settings": plain(config),
        "hashes": plain(attributes.get("hashes", {})),
        "dtype": dtype,
        "variants": {
            one.name or "main": sorted({*always, *(["train"] if one.train_scores else [])}) for one in variants
        },
        **{
            f"{side} {name}": array_hash(np.asarray(getattr(examples, name), dtype=np.int64))
            for side, examples in sides.items()
            for name in ("index", "label")
        },
    }


def held_by(file: h5py.File, contents: Contents) -> dict[str, Any]:
    """The same of a file.

    Args:
        file: An open store.
        contents: What it says about itself.

    Returns:
        Settings and everything else by name, with the tiles that its matrices are cut into.
    """
    grid = contents.matrices[0].grid
    return {
        "settings": contents.config,
        "hashes": contents.shared.get("hashes", {}),
        "dtype": contents.matrices[0].dtype,
        "variants": {
            name or "main": sorted(matrix.side for matrix in contents.matrices if matrix.variant == name)
            for name in contents.variants
        },
        "tiles": {"rows_per_tile": grid.rows_per_tile, "columns_per_tile": grid.columns_per_tile},
        **{f"{side} {name}": array_hash(file[side][name]) for side in contents.counts for name in ("index", "label")},
    }


def refuse_other(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless a file is what a run would make.

    Args:
        path: The file.
        held: What it is.
        wanted: What the run asks for, or its `settings` alone; how tiles are cut matters only where this has `tiles`.

    Raises:
        StoreMismatch: They differ; the message shows both.
    """
    found = differences(held["settings"], wanted["settings"])
    if not found and wanted.keys() > {"settings"}:  # settings first: other weights or examples mostly follow from them
        skipped = {"settings", *({"tiles"} - wanted.keys())}
        one, other = ({name: value for name, value in side.items() if name not in skipped} for side in (held, wanted))
        found = differences(one, other)
    if not found:
        return
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    holds = ", ".join(f"{name}={value}" for name, value, _ in found[:SHOWN])
    asks = ", ".join(f"{name}={value}" for name, _, value in found[:SHOWN])
    raise StoreMismatch(
        f"{path} holds results for {holds}{more}; this run asks for {asks}{more}. "
        "Pass --overwrite (overwrite=True) to rebuild, or --out DIR (another path) to keep both."
    )
