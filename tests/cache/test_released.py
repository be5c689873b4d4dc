"""A small file of every released version still opens and says what it said. How they were made: tests/data/README.md."""

from __future__ import annotations

import hashlib
import re
import runpy
from pathlib import Path

import h5py
import numpy as np
import pytest
import stores
from upweight.cache.layout import VERSION
from upweight.cache.store import describe, open_scores, variant_names

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
MADE = runpy.run_path(str(DATA / "make_store.py"))
RELEASED = {"1.0": "782a27575feb84f38d5be2960e2073fdff7c8d2e07fd0ab1d4663b47f71d6dcd"}


@pytest.mark.parametrize("version", RELEASED)
def test_the_file_itself_was_not_touched(version: str):
    assert hashlib.sha256((DATA / f"store-{version}.h5").read_bytes()).hexdigest() == RELEASED[version]


@pytest.mark.parametrize("version", RELEASED)
def test_a_released_file_opens_and_its_numbers_are_what_they_were(version: str):
    path = DATA / f"store-{version}.h5"
    assert variant_names(path) == ("", "damped")
    main, damped = open_scores(path), open_scores(path, "damped")
    difference = np.subtract.outer(np.arange(12), np.arange(20))
    np.testing.assert_array_equal(main.matrix[:], difference / 4)
    np.testing.assert_array_equal(damped.matrix[:], difference / 4 + 8)
    np.testing.assert_array_equal(main.on_train.matrix[:], np.subtract.outer(np.arange(20), np.arange(20)) / 4 + 0.5)
    assert main.on_train.on_itself
    assert damped.on_train is None
    stores.same_examples(main.queries, MADE["examples"](12, 100))
    stores.same_examples(main.train, MADE["examples"](20, 0))
    assert main.spectrum.eigenvalues.tolist() == [2.0, 1.0, 0.25, 0.0]
    assert (main.spectrum.rank, main.spectrum.condition) == (3, 8.0)
    assert main.spectrum.sensitivity == {"top1_changed_at_0.1x": 0.0, "top1_changed_at_10x": 0.5}
    assert main.meta["curvature"] == {"name": "LinearHead", "damping": 0.0, "rcond": None}
    assert main.meta["sign"] == "+g_query H^+ g_train; positive = helpful"
    assert damped.meta["note"] == "written for the tests · µ"
    assert main.top(11, k=2).rows() == [
        {"rank": 1, "train_id": 0, "score": 2.75, "label": 0},
        {"rank": 2, "train_id": 2, "score": 2.5, "label": 1},
    ]


@pytest.mark.parametrize("version", RELEASED)
def test_describe_knows_it(version: str):
    told = describe(DATA / f"store-{version}.h5")
    assert (told["version"], told["complete"]) == (version, True)
    assert told["config"] == {"k": 1, "damping": 0.0, "parameters": "head", "seed": 20_000_000}


def structure(path: Path) -> dict[str, object]:
    """Names, types, shapes, chunks, values and attributes, but for what depends on the day and the libraries."""
    found: dict[str, object] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        attributes = {key: value for key, value in item.attrs.items() if key not in ("created", "versions_json")}
        data = (
            (item.dtype.str, item.shape, item.chunks, item[...].tobytes()) if isinstance(item, h5py.Dataset) else None
        )
        found[name] = (attributes, data)

    with h5py.File(path) as file:
        note("/", file)
        file.visititems(note)
    return found


def test_the_current_version_still_writes_the_same_file(tmp_path: Path):
    # if this fails the format has changed: raise VERSION in cache/layout.py, write docs/format.md anew, and keep the old file
    MADE["write"](tmp_path / "now.h5")
    assert structure(tmp_path / "now.h5") == structure(DATA / f"store-{VERSION}.h5")


def test_the_example_in_the_documentation_runs():
    text = (ROOT / "docs" / "format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"path": DATA / f"store-{VERSION}.h5"}
    exec(code, names)
    assert names["unit"] == "nats per unit weight"
    assert (names["best"], names["train_id"]) == (0, 0)


def test_the_documentation_names_everything_in_a_file():
    text = (ROOT / "docs" / "format.md").read_text()
    assert f"version {VERSION}" in text
    with h5py.File(DATA / f"store-{VERSION}.h5") as file:
        names = {
            name for key in ("/", "scores", "done/queries", "scores/queries", "spectrum") for name in file[key].attrs
        }
        names |= {name for key in ("train", "spectrum") for name in file[key]}
    unnamed = {name for name in names if not re.search(rf"\b{re.escape(name)}`", text)}
    given = {"note", "warnings_json"}  # by the run, handed on as they are
    assert unnamed == {"sensitivity.top1_changed_at_0.1x", "sensitivity.top1_changed_at_10x", *given}
