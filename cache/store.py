"""Stores, as the other folders use them: one HDF5 file a run, opened, resumed, saved, described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..influence.damping import variant_name
from .describe import describe
from .errors import StoreError
from .files import find, incomplete, partial_path
from .handle import DTYPES, Store, matching
from .layout import FORMAT, VariantLayout
from .provenance import array_hash, plain
from .safe_open import PARTIAL, safe_open
from .sink import Sink

if TYPE_CHECKING:
    from ..influence.examples import Progress
    from ..influence.ranking import Matrix
    from ..influence.scores import Scores

SAVED_ROWS = 1024
"""Rows that are written at once when scores are saved."""

__all__ = [
    "Sink",
    "Store",
    "VariantLayout",
    "describe",
    "finished_variants",
    "open_scores",
    "open_store",
    "save_scores",
    "save_variants",
    "variant_names",
]


def open_store(path: str | Path, *, allow_partial: bool = False) -> Store:
    """Open a store of any origin for reading.

    Args:
        path: Its name.
        allow_partial: Open an unfinished one too, to look at what it says about itself.

    Returns:
        The store.

    Raises:
        StoreError: There is none, it is damaged, not a store, not to be trusted, or incomplete.
    """
    found, final = find(Path(path))
    store = Store(safe_open(found, FORMAT), final)
    if not allow_partial and (not store.contents.complete or found != final):
        store.close()
        raise StoreError(incomplete(final, *store.contents.tiles))
    return store


def open_scores(path: str | Path, variant: str = "") -> Scores:
    """Read scores back.

    Args:
        path: A store.
        variant: Name of the variant, where the store holds several.

    Returns:
        Scores whose matrix is read from the file as it is used; the file closes with the last reference to them.
    """
    return open_store(path).scores(variant)


def variant_names(path: str | Path) -> tuple[str, ...]:
    """The sets of scores in a store.

    Args:
        path: A complete store.

    Returns:
        Their names, "" first.
    """
    with open_store(path) as store:
        return store.contents.variants


def finished_variants(
    path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False
) -> tuple[str, ...] | None:
    """Ask, before any dear step, whether a run is there already, or its place is taken.

    Args:
        path: Name of the complete store.
        config: The settings that decide the scores.
        overwrite: A store made under other settings, or a damaged one, may be replaced.

    Returns:
        Names of the variants of the complete store that was made under these settings; None when it is still to be made.
    """
    wanted = {"settings": plain(config)}
    for file in (Path(path), partial_path(Path(path))):
        store = matching(file, wanted, overwrite)
        if store is not None:
            with store:
                return None if file.name.endswith(PARTIAL) else store.contents.variants
    return None


def save_scores(scores: Scores, path: str | Path, *, overwrite: bool = False) -> None:
    """Write scores to a store of their own.

    Args:
        scores: The scores, in memory or in another store.
        path: A name that is free, or holds these very scores already.
        overwrite: Replace a store that holds others.
    """
    every = _by_variant(scores)
    saved = {"saved": _identity(scores) | {name: _identity(one) for name, one in every.items() if name}}
    save_variants(every, path, config=saved, overwrite=overwrite)


def save_variants(
    every: Mapping[str, Scores],
    path: str | Path,
    *,
    config: Mapping[str, Any],
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write sets of scores of the same examples to one store, block of rows by block; what is there already is kept.

    Args:
        every: Scores by variant, "" among them.
        path: Name of the complete file.
        config: What tells these scores from others.
        attributes: What holds for all of them.
        overwrite: Replace a store that holds others.
        progress: Told after each block.
    """
    main = every[""]
    dtype = np.asarray(main.matrix[:1]).dtype.name
    with Store.create_or_resume(
        path,
        queries=None if main.on_itself else main.queries,
        train=main.train,
        variants=[
            VariantLayout(name=name, attributes=one.meta, spectrum=one.spectrum, train_scores=one.on_train is not None)
            for name, one in every.items()
        ],
        attributes=attributes or {},
        config=config,
        dtype=dtype if dtype in DTYPES else "float32",
        rows_per_tile=SAVED_ROWS,
        columns_per_tile=len(main.train),
        overwrite=overwrite,
    ) as store:
        for name, one in every.items():
            _save(_matrices(one), store.sink(name), progress)
        store.finish()


def _by_variant(scores: Scores) -> dict[str, Scores]:
    """The scores under their names in a store, those at further dampings with them."""
    further = {variant_name(damping): one for damping, one in scores.at_damping.items() if one is not scores}
    return {"": scores, **further}


def _matrices(scores: Scores) -> dict[str, Matrix]:
    main = "train" if scores.on_itself else "queries"
    return {main: scores.matrix} | ({} if scores.on_train is None else {"train": scores.on_train.matrix})


def _identity(scores: Scores) -> dict[str, Any]:
    """What tells these scores from others."""
    facts = None if scores.spectrum is None else scores.spectrum.to_dict()
    hashes = {side: array_hash(matrix) for side, matrix in _matrices(scores).items()}
    return {"scores": hashes, "meta": scores.meta, "spectrum": facts}


def _save(matrices: Mapping[str, Matrix], sink: Sink, progress: Progress | None) -> None:
    for side, matrix in matrices.items():
        m, n = matrix.shape
        starts = range(0, m, SAVED_ROWS)
        for i, start in enumerate(starts):
            rows = slice(start, min(start + SAVED_ROWS, m))
            if not sink.done(side, i, 0):
                sink.write(side, rows, slice(0, n), np.asarray(matrix[rows]), (i, 0))
            if progress is not None:
                progress(f"write {side}", i + 1, len(starts))
