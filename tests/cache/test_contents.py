"""A file must be what it says: versions, missing and misfitting parts."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import stores
from upweight.cache.errors import StoreError
from upweight.cache.store import VariantLayout, open_scores, open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound store of two variants, to be tampered with."""
    variants = [*stores.layout()["variants"], VariantLayout(name="damped")]
    return stores.complete(tmp_path / "influence.h5", variants=variants)


def text(file: h5py.File, name: str, value: str) -> None:
    file.attrs[name] = np.bytes_(value)


def swap(file: h5py.File, key: str, value: object) -> None:
    del file[key]
    if value is not None:
        file[key] = value


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("2.0", "has format version 2.0; this upweight reads versions up to 1.0. Install a newer upweight."),
        ("10.1", "has format version 10.1; this upweight reads versions up to 1.0. Install a newer upweight."),
        ("0.3", "has format version 0.3; this upweight reads versions up to 1.0. Rebuild it with --overwrite."),
        ("new", "is damaged: its format version cannot be read."),
        ("", "is damaged: its format version cannot be read."),
    ],
)
def test_other_major_versions_are_refused(path: Path, version: str, sentence: str):
    with h5py.File(path, "r+") as file:
        text(file, "version", version)
    with pytest.raises(StoreError, match=re.escape(f"{path} {sentence}")):
        open_store(path)


def test_a_newer_minor_version_may_hold_more(path: Path):
    with h5py.File(path, "r+") as file:
        text(file, "version", "1.7")
        file["gradients/train"] = np.zeros((5, 3), np.float32)
        file["spectrum"].attrs["decay"] = 1.5
        file["queries/margin"] = np.zeros(7)
        text(file["scores"], "form", "dual")
    scores = open_scores(path)
    assert scores.meta["form"] == "dual"
    assert scores.spectrum.to_dict() == stores.SPECTRUM.to_dict()


DAMAGE = {
    "no settings": (lambda f: f.attrs.__delitem__("config_json"), "its settings are missing"),
    "settings are a list": (lambda f: text(f, "config_json", "[1]"), "its settings are missing"),
    "settings are no JSON": (lambda f: text(f, "config_json", "{"), "the attribute config_json of / is not JSON text"),
    "no count": (lambda f: f.attrs.__delitem__("train_count"), "train_count is None and not a number of at least 1"),
    "count is zero": (lambda f: f.attrs.__setitem__("query_count", 0), "query_count is 0 and not"),
    "count is text": (lambda f: text(f, "query_count", "7"), "query_count is '7' and not"),
    "count is true": (lambda f: f.attrs.__setitem__("train_count", np.True_), "train_count is True and not"),
    "another count": (lambda f: f.attrs.__setitem__("query_count", 8), r"queries/index has shape [7] for 8 examples"),
    "no labels": (lambda f: swap(f, "train/label", None), "train/label is missing"),
    "too few labels": (lambda f: swap(f, "train/label", np.zeros(4, int)), "train/label has shape [4] for 5 examples"),
    "labels are floats": (lambda f: swap(f, "train/label", np.zeros(5)), "train/label is float64 and not int64"),
    "labels are a table": (lambda f: swap(f, "train/label", np.zeros((5, 1), int)), "train/label has shape [5, 1]"),
    "residuals of others": (
        lambda f: swap(f, "queries/residual", np.zeros((6, 3))),
        "queries/residual has shape [6, 3]",
    ),
    "scores are a group": (lambda f: swap(f, "scores/queries", None) or f.create_group("scores/queries"), "is a group"),
    "no scores": (lambda f: swap(f, "scores/queries", None), "scores/queries is missing"),
    "no scores at all": (lambda f: [swap(f, name, None) for name in ("scores", "variants")], "it holds no scores"),
    "scores turned": (lambda f: swap(f, "scores/queries", np.zeros((5, 7), "f4")), "has shape [5, 7] and not [7, 5]"),
    "scores are counts": (
        lambda f: swap(f, "scores/queries", np.zeros((7, 5), int)),
        "int64 and not float32 or float64",
    ),
    "no tiles": (lambda f: swap(f, "done/train", None), "done/train is missing"),
    "tiles of another cut": (
        lambda f: f["done/train"].attrs.__setitem__("rows_per_tile", 5),
        "done/train has shape [2, 3]",
    ),
    "tiles without a cut": (lambda f: f["done/train"].attrs.__delitem__("rows_per_tile"), "rows_per_tile is None"),
    "half a tile": (lambda f: f["done/train"].__setitem__((0, 0), 2), "other values than 0 and 1"),
    "a variant without scores": (lambda f: f.create_group("variants/x"), "variants/x/scores/queries is missing"),
    "variants are numbers": (lambda f: swap(f, "variants", np.zeros(3)), "variants is no group"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_what_it_says(path: Path, damage: str):
    change, sentence = DAMAGE[damage]
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(StoreError, match=f"{re.escape(str(path))} is damaged.*{re.escape(sentence)}.*--overwrite"):
        open_store(path)


@pytest.mark.parametrize("name", ["rank", "lambda_max"])
def test_a_spectrum_without_its_facts(path: Path, name: str):
    with h5py.File(path, "r+") as file:
        del file["spectrum"].attrs[name]
    with pytest.raises(StoreError, match=f"is damaged .*{name}.*--overwrite"):
        open_scores(path)


def test_what_may_be_absent_may_be_absent(path: Path):
    with h5py.File(path, "r+") as file:
        for key in ("spectrum/eigenvalues", "queries/features", "scores/train", "done/train"):
            del file[key]
        for name in ("created", "hashes_json", "versions_json"):
            del file.attrs[name]
    scores = open_scores(path)
    assert scores.spectrum.eigenvalues is None
    assert scores.queries.features is None
    assert scores.on_train is None
    assert "hashes" not in scores.meta
