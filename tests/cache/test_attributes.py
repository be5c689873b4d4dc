"""Values as HDF5 attributes."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upweight.cache.attributes import read_attributes, write_attributes
from upweight.cache.errors import StoreError

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | finite | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
attribute_names = st.from_regex(r"[a-z_. ]{1,12}(_json)?", fullmatch=True)


def in_memory() -> h5py.File:
    return h5py.File("attributes.h5", "w", driver="core", backing_store=False)


@given(st.dictionaries(attribute_names, values, max_size=5))
def test_write_then_read_is_identity(settings):
    with in_memory() as file:
        write_attributes(file, settings)
        read = read_attributes(file)
    assert read == settings
    assert {name: type(value) for name, value in read.items()} == {
        name: type(value) for name, value in settings.items()
    }


@pytest.mark.parametrize(
    "text",
    ["", "nats · µ", "a\0b", "\ud800", '{"a": 1}', "x" * 100_000],
    ids=["empty", "greek", "nul", "surrogate", "json", "long"],
)
def test_any_text_comes_back(text):
    with in_memory() as file:
        write_attributes(file, {"note": text, "note_json": text})
        assert read_attributes(file) == {"note": text, "note_json": text}


def test_scalars_are_plain_attributes_for_other_readers():
    with in_memory() as file:
        write_attributes(
            file, {"damping": 0.5, "k": 3, "self": True, "unit": "nats", "nan": math.nan, "f": np.float32(0.5)}
        )
        assert {name: file.attrs[name].dtype.kind for name in ("damping", "k", "self", "nan", "f")} == {
            "damping": "f",
            "k": "i",
            "self": "b",
            "nan": "f",
            "f": "f",
        }
        assert file.attrs["unit"] == b"nats"
        assert math.isnan(read_attributes(file)["nan"])


def test_everything_else_is_json_under_a_marked_name():
    with in_memory() as file:
        write_attributes(file, {"curvature": {"name": "Hessian", "rcond": None}, "huge": 2**80})
        assert dict(file.attrs) == {
            "curvature_json": b'{"name": "Hessian", "rcond": null}',
            "huge_json": str(2**80).encode(),
        }


@pytest.mark.parametrize("value", [b"{", b"[" * 20_000, 3], ids=["broken", "deep", "number"])
def test_json_that_cannot_be_read_is_damage(value):
    with in_memory() as file:
        file.attrs["curvature_json"] = value
        with pytest.raises(StoreError, match=r"curvature_json of / is not JSON text.*--overwrite"):
            read_attributes(file)


def test_text_too_long_for_an_attribute_is_kept_beside_it():
    long = {"weights": {f"layer{i}.weight": "0" * 64 for i in range(900)}, "note": "é" * 40_000}
    with in_memory() as file:
        write_attributes(file, {**long, "k": 1})
        assert set(file.attrs) == {"k"}
        assert set(file["attributes"]) == {"weights_json", "note"}
        assert read_attributes(file) == {**long, "k": 1}
