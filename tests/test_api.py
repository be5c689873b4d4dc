"""The public names, and what importing them costs."""

import json
import subprocess
import sys

import pytest
import upweight

PUBLIC = [
    "attribute",
    "open_scores",
    "average",
    "Scores",
    "Table",
    "retrain",
    "open_truth",
    "Truth",
    "estimate",
    "Estimate",
    "LinearHead",
    "Hessian",
    "GaussNewton",
    "GradientDot",
    "KFAC",
    "EKFAC",
    "Nystroem",
    "Lanczos",
    "Projected",
    "ConjugateGradient",
    "Unrolled",
    "Recording",
    "open_recording",
    "evaluate",
    "lds",
    "lds_difference",
    "loo",
    "mislabel",
    "UpweightError",
    "UsageError",
    "CheckpointError",
    "DataError",
    "ShapeError",
    "SolveError",
    "StoreError",
    "StoreMismatch",
]
HEAVY = ["torch", "torchvision", "h5py", "matplotlib", "sklearn", "scipy", "jinja2"]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_pinned():
    assert upweight.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(upweight))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves(name):
    value = getattr(upweight, name)
    assert callable(value) and value.__doc__, f"{name} has no docstring"
    assert value.__name__ == name


def test_unknown_name_is_an_attribute_error():
    misspelt = "Hesian"
    with pytest.raises(AttributeError, match=r"'upweight' has no attribute 'Hesian'"):
        getattr(upweight, misspelt)


@pytest.mark.parametrize(
    "modules",
    [
        "upweight",
        "upweight, upweight.influence, upweight.models, upweight.cache, upweight.reports",
        "upweight.influence.errors, upweight.models.errors, upweight.cache.errors",
        "upweight.models.settings, upweight.reports.settings",
        "upweight.cli",
    ],
)
def test_importing_loads_nothing_heavy(modules):
    loaded = json.loads(run_python(f"import {modules}, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert [name for name in HEAVY if name in loaded] == []


def test_importing_everything_changes_nothing_outside():
    """No seeds, no thread counts, no plot backend, no log level: a library leaves those to its user."""
    code = """
import logging, random, os, warnings
import numpy, torch, torchvision, matplotlib, h5py, scipy.linalg, sklearn.datasets, jinja2  # some add warning filters
before = (random.getstate(), repr(numpy.random.get_state()), torch.random.get_rng_state().tolist(),
          torch.get_num_threads(), torch.get_default_dtype(), logging.getLogger().level, len(logging.getLogger().handlers),
          dict(matplotlib.rcParams), dict(os.environ), warnings.filters[:])
import upweight
for name in upweight.__all__:
    getattr(upweight, name)
import upweight.cli, upweight.reports.page
after = (random.getstate(), repr(numpy.random.get_state()), torch.random.get_rng_state().tolist(),
         torch.get_num_threads(), torch.get_default_dtype(), logging.getLogger().level, len(logging.getLogger().handlers),
         dict(matplotlib.rcParams), dict(os.environ), warnings.filters[:])
for a, b in zip(before, after):
    if a != b:
        raise SystemExit(f"changed: {a!r} -> {b!r}"[:2000])
"""
    run_python(code)


def test_errors_have_one_base_and_usage_is_a_value_error():
    for name in PUBLIC:
        if name.endswith("Error") or name == "StoreMismatch":
            assert issubclass(getattr(upweight, name), upweight.UpweightError)
    assert issubclass(upweight.UsageError, ValueError)
    assert issubclass(upweight.StoreMismatch, upweight.StoreError)


def test_version_is_that_of_the_metadata():
    from importlib.metadata import version

    assert upweight.__version__ == version("upweight")
