"""Write the small store of a released version; its scores and examples are closed forms, so that a test can know them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from upweight.cache.store import Store, VariantLayout
from upweight.influence.examples import Examples
from upweight.influence.spectrum import Spectrum

M, N, CLASSES, FEATURES = 12, 20, 3, 4
TILE = (8, 16)


def examples(count: int, first: int) -> Examples:
    """Examples whose every value follows from its row."""
    rows = np.arange(count)
    return Examples(
        index=first + 2 * rows,
        label=rows % CLASSES,
        prediction=(rows + rows // 7) % CLASSES,
        loss=1 / (1 + rows),
        residual=np.subtract.outer(rows, np.arange(CLASSES)) / 16,
        features=(np.multiply.outer(rows, np.arange(FEATURES)) / 8).astype(np.float32),
    )


def scores(rows: int, columns: int, shift: float) -> np.ndarray:
    """Scores that float32 holds exactly."""
    return np.subtract.outer(np.arange(rows), np.arange(columns)).astype(np.float32) / 4 + np.float32(shift)


def write(path: Path) -> None:
    """Make the file."""
    spectrum = Spectrum(
        size=4,
        rank=3,
        cutoff=1e-7,
        damping=0.0,
        lambda_max=2.0,
        lambda_min=0.0,
        smallest_kept=0.25,
        condition=8.0,
        trace_kept=1.0,
        negative=0,
        negative_trace=0.0,
        sensitivity={"top1_changed_at_0.1x": 0.0, "top1_changed_at_10x": 0.5},
        eigenvalues=np.array([2.0, 1.0, 0.25, 0.0]),
    )
    main = {"curvature": {"name": "LinearHead", "damping": 0.0, "rcond": None}, "query_label": "true", "warnings": []}
    damped = {"curvature": {"name": "LinearHead", "damping": 5e-4, "rcond": None}, "query_label": "true"}
    with Store.create_or_resume(
        path,
        queries=examples(M, 100),
        train=examples(N, 0),
        variants=[
            VariantLayout(name="", attributes=main, spectrum=spectrum, train_scores=True),
            VariantLayout(name="damped", attributes=damped),
        ],
        attributes={"hashes": {"model": "0" * 64, "data": "1" * 64}, "note": "written for the tests · µ"},
        config={"k": 1, "damping": 0.0, "parameters": "head", "seed": 20_000_000},
        rows_per_tile=TILE[0],
        columns_per_tile=TILE[1],
    ) as store:
        for matrix in store.contents.matrices:
            whole = scores(matrix.grid.rows, matrix.grid.columns, shift(matrix.variant, matrix.side))
            for i in range(matrix.grid.blocks[0]):
                for j in range(matrix.grid.blocks[1]):
                    rows, columns = matrix.grid.slices(i, j)
                    store.sink(matrix.variant).write(matrix.side, rows, columns, whole[rows, columns], (i, j))
        store.finish()


def shift(variant: str, side: str) -> float:
    """What tells the matrices of the file apart."""
    return (8.0 if variant else 0.0) + (0.5 if side == "train" else 0.0)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
