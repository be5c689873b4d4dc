"""Small stores for tests: drawn examples, known scores, and the walk over tiles."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from upweight.cache.store import Store, VariantLayout
from upweight.influence.examples import Examples
from upweight.influence.spectrum import Spectrum

SPECTRUM = Spectrum(
    size=4,
    rank=2,
    cutoff=1e-7,
    damping=0.0,
    lambda_max=3.0,
    lambda_min=0.0,
    smallest_kept=0.5,
    condition=6.0,
    trace_kept=1.0,
    negative=0,
    negative_trace=0.0,
    sensitivity={"top1_changed_at_0.1x": 0.25, "top5_changed_at_10x": 0.125},
    eigenvalues=np.array([3.0, 0.5, 0.0, 0.0]),
)
ATTRIBUTES = {"curvature": {"name": "LinearHead", "damping": 0.0, "rcond": None}, "query_label": "true"}


def examples(count: int, seed: int = 0, *, optional: bool = True) -> Examples:
    """Examples with every field drawn, the optional ones if wanted."""
    rng = np.random.default_rng(seed)
    return Examples(
        index=rng.permutation(10 * count)[:count],
        label=rng.integers(0, 3, count),
        prediction=rng.integers(0, 3, count),
        loss=rng.random(count),
        residual=rng.standard_normal((count, 3)) if optional else None,
        features=rng.standard_normal((count, 4)).astype(np.float32) if optional else None,
    )


def layout(m: int | None = 7, n: int = 5, tile: tuple[int, int] = (3, 2), **changes: Any) -> dict[str, Any]:
    """Arguments of `Store.create_or_resume`, but for the path."""
    return {
        "queries": None if m is None else examples(m, seed=1),
        "train": examples(n, seed=2),
        "variants": [VariantLayout(name="", attributes=ATTRIBUTES, spectrum=SPECTRUM, train_scores=True)],
        "attributes": {"hashes": {"model": "m" * 8, "data": "d" * 8}},
        "config": {"damping": 0.0, "k": 1, "curvature": {"name": "linear-head"}},
        "rows_per_tile": tile[0],
        "columns_per_tile": tile[1],
        **changes,
    }


def matrix(store: Store, variant: str, side: str) -> np.ndarray:
    """The known scores of a matrix: they tell variant, side, row and column."""
    known = store.contents.matrix(variant, side)
    grid = known.grid
    base = 10_000 * (1 + store.contents.variants.index(variant)) + 5_000 * (side == "train")
    return base + np.arange(grid.rows * grid.columns, dtype=known.dtype).reshape(grid.rows, grid.columns) / 8


def tiles(store: Store) -> list[tuple[str, str, int, int]]:
    """Every tile of a store: variant, side, position down and across."""
    return [
        (m.variant, m.side, i, j)
        for m in store.contents.matrices
        for i in range(m.grid.blocks[0])
        for j in range(m.grid.blocks[1])
    ]


def write(store: Store, which: Iterable[tuple[str, str, int, int]] | None = None) -> None:
    """Write the known scores of some tiles, or of all that are missing."""
    sinks = {name: store.sink(name) for name in store.contents.variants}
    for variant, side, i, j in tiles(store) if which is None else which:
        if which is None and sinks[variant].done(side, i, j):
            continue
        rows, columns = store.contents.matrix(variant, side).grid.slices(i, j)
        sinks[variant].write(side, rows, columns, matrix(store, variant, side)[rows, columns], (i, j))


def complete(path: Path, **changes: Any) -> Path:
    """A finished store of known scores."""
    with Store.create_or_resume(path, **layout(**changes)) as store:
        write(store)
        store.finish()
    return path


def same_examples(one: Examples, other: Examples) -> None:
    """Fail unless every field is the same, type and presence included."""
    for name in ("index", "label", "prediction", "loss", "residual", "features"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert np.asarray(a).dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(os.listdir(folder))
