"""The tidy tables of made-up sweeps: whatever is not given is as in a plain run."""

import numpy as np
from upweight.influence.tables import Table

RUN = {
    "source": "natural", "recipe": "", "data": "digits", "resolution": np.nan, "n": 100, "k": "0", "trained_blocks": 0, "seed": 0,
    "epochs": 20, "train_accuracy": 1.0, "test_accuracy": 0.9, "robust_accuracy": np.nan, "robust_images": np.nan,
    "seconds": 10.0, "trained_parameters": 330, "hidden": 0, "lwf": np.nan, "neft": np.nan, "adversarial": False, "classes": 10,
}  # fmt: skip
SOURCE = {
    "source": "natural", "architecture": "small_resnet", "parameters": 80000, "data": "fashion-mnist", "norm": "", "eps": 0.0,
    "fdm": 0.0, "natural_accuracy": 0.9, "robust_accuracy": 0.1, "robust_images": 1000.0, "attack": "L2 1, PGD-20",
}  # fmt: skip
EPOCH = {name: RUN[name] for name in ("source", "recipe", "data", "resolution", "n", "k", "seed")}


def table(rows, like):
    """Rows as a Table, with a name for each."""
    full = [{**like, **row} for row in rows]
    return Table({name: np.array([row[name] for row in full]) for name in (full[0] if full else like)})


def runs(*rows):
    """The table of runs; each gets a name of its own."""
    return table([{"run": f"run-{i}", **row} for i, row in enumerate(rows)], RUN)


def sources(*rows):
    return table(rows, SOURCE)


def history(*rows):
    return table(
        [{"run": "", "epoch": 1, "loss": 1.0, "train_accuracy": 1.0, "test_accuracy": 0.9, **row} for row in rows],
        EPOCH,
    )


def seeds(values, **row):
    """A run a seed, with these test accuracies."""
    return [{**row, "seed": seed, "test_accuracy": value} for seed, value in enumerate(values)]
