"""Sets of train examples chosen for a query and taken away: what became of its loss, and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import UsageError
from .evaluation_bench import Bench, Truths

if TYPE_CHECKING:
    from .evaluation import EvaluateSettings
    from .influence.tables import Table
    from .influence.truth import Truth

TOP, GREEDY, RANDOM = "highest scores", "greedy", "at random"
SUMMED, THROUGH = "summed scores", "through the curvature"
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Default sizes of sets, in examples of a class."""


def remove_sets(bench: Bench, truths: Truths, settings: EvaluateSettings) -> tuple[Table, Table]:
    """Choose sets for some queries, train without each of them, and hold what was expected against what came.

    Args:
        bench: The run and its scores.
        truths: Where refits are made.
        settings: How many queries, which sizes.

    Returns:
        A row a query and set; and a row a way to predict, with its correlation over all of them.
    """
    from .influence.removal import removed_sums, subset_removal
    from .reports.runs import table_of

    output: Any = settings.output
    queries = _queries(bench, settings.removal)
    sizes = _sizes(bench, settings.sizes)
    chosen = [
        (query, name, order[:size])
        for query in queries
        for name, order in _orders(bench, query, max(sizes), settings.seed).items()
        for size in sizes
    ]
    kept = np.ones((len(chosen) + 1, bench.n), dtype=np.bool_)
    for row, (_, _, members) in enumerate(chosen):
        kept[row + 1, members] = False
    truth = truths.sets(kept)
    predictions = {SUMMED: removed_sums(bench.main.matrix, truth)}
    through = bench.removed(truth)
    if through is not None:
        predictions[THROUGH] = through
    measured = subset_removal(predictions[SUMMED], truth, output, resamples=0)
    place = {int(row): at for at, row in enumerate(measured.row)}
    rows = []
    for row, (query, name, members) in enumerate(chosen, start=1):
        expected = {word: float(values[row, query]) / bench.n for word, values in predictions.items()}
        rows.append({
            "query": int(query),
            "chosen": name,
            "size": len(members),
            "actual": float(measured.actual[place[row], query]) / bench.n if row in place else float("nan"),
            "summed": expected[SUMMED],
            "interaction": expected.get(THROUGH, float("nan")),
        })
    title = f"Rise of the {output} of a query without a set of train examples, measured and predicted (nats)"
    return table_of(rows, title), _agreement(predictions, truth, settings)


def _queries(bench: Bench, count: int) -> NDArray[np.int64]:
    """Some queries, one of each class first."""
    from .reports.neighbours import one_per_class

    labels = bench.main.queries.label
    if count > len(labels):
        raise UsageError(f"removal is {count}, and the run has {len(labels)} queries; give at most as many.")
    first = one_per_class(labels)
    others = np.setdiff1d(np.arange(len(labels)), first)
    found: NDArray[np.int64] = np.concatenate([first, others])[:count]
    return found


def _sizes(bench: Bench, asked: Sequence[int]) -> list[int]:
    """How many examples are taken away: fewer than would take a whole class."""
    a_class = bench.n / len(np.unique(bench.main.train.label))
    sizes = sorted(set(asked)) or sorted({max(1, round(share * a_class)) for share in SHARES})
    if sizes[-1] >= bench.n:
        raise UsageError(
            f"A set of {sizes[-1]} is asked for, and there are {bench.n} train examples; give smaller sizes."
        )
    return sizes


def _orders(bench: Bench, query: int, size: int, seed: int) -> dict[str, NDArray[Any]]:
    """Positions of the train examples to take away, in three orders."""
    row = np.asarray(bench.main.matrix[query : query + 1])[0]
    orders = {TOP: np.argsort(-row, kind="stable")[:size]}
    greedy = bench.greedy(query, size)
    if greedy is not None:
        orders[GREEDY] = greedy
    orders[RANDOM] = np.random.default_rng([seed, 2, query]).permutation(bench.n)[:size]
    return orders


def _agreement(predictions: Mapping[str, NDArray[Any]], truth: Truth, settings: EvaluateSettings) -> Table:
    """How each way to predict agrees with what was measured, over all pairs of a set and any query."""
    from .influence.removal import subset_removal
    from .reports.runs import table_of

    rows = []
    for words, predicted in predictions.items():
        one = subset_removal(predicted, truth, settings.output, seed=settings.seed)  # type: ignore[arg-type]
        (low, high), (flat, steep) = one.pearson_interval, one.slope_interval
        row = {"predicted_by": words, "pearson": one.pearson, "from": low, "to": high, "spearman": one.spearman}
        rows.append({**row, "slope": one.slope, "slope_from": flat, "slope_to": steep, "sets": len(one.row)})
    title = f"Measured against predicted rises of the {settings.output}, over pairs of a set and a query; slope 1: right in size"
    return table_of(rows, title)
