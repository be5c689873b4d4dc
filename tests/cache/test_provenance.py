"""Settings as text, their digest, and what a mismatch shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upweight import UsageError
from upweight.cache.provenance import array_hash, canonical, differences, digest, library_versions, plain

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@dataclass(frozen=True)
class Settings:
    damping: float = 0.5
    source: str = "natural"


@given(values)
def test_plain_is_json_and_plain_again_changes_nothing(value):
    once = plain(value)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert plain(once) == once


@given(values)
def test_canonical_text_says_the_same_settings(value):
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(st.dictionaries(st.text(), scalars, min_size=2))
def test_digest_does_not_depend_on_the_order(settings):
    backwards = dict(reversed(settings.items()))
    assert digest(settings) == digest(backwards)


def test_plain_takes_what_settings_hold():
    held = {
        "array": np.array([[1, 2], [3, 4]]),
        "number": np.float32(0.5),
        "path": PurePosixPath("a/b"),
        "tuple": (1, None),
        "settings": Settings(),
        3: True,
    }
    assert plain(held) == {
        "array": [[1, 2], [3, 4]],
        "number": 0.5,
        "path": "a/b",
        "tuple": [1, None],
        "settings": {"damping": 0.5, "source": "natural"},
        "3": True,
    }


def test_infinities_become_text_that_float_reads_back():
    assert [float(text) for text in plain([float("inf"), float("-inf")])] == [float("inf"), float("-inf")]


def test_what_no_file_can_hold_is_refused():
    with pytest.raises(UsageError, match="is a function"):
        plain({"loss": plain})


def test_the_digest_is_that_of_the_text_written_down_here():
    # any other value would orphan every store that exists
    settings = {"k": 1, "damping": 0.0, "names": ["a", "b"]}
    assert canonical(settings) == '{"damping":0,"k":1,"names":["a","b"]}'
    assert digest(settings) == "d42a29c54439ee0c49ccd239e0614d1a668e8171b5d65dd96c7ed404c3f1e17e"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0, 0.0, True),
        (-0.0, 0.0, True),
        (1, 1.0, True),
        (1, True, False),
        ("1", 1, False),
        (None, "None", False),
        (0.1, 0.1 + 2e-17, False),
    ],
)
def test_equal_numbers_are_one_setting_and_nothing_else_is(one, other, same):
    assert (digest({"x": one}) == digest({"x": other})) == same
    assert (differences({"x": one}, {"x": other}) == []) == same


def test_differences_name_the_setting_and_both_values():
    held = {"damping": 0.01, "k": 1, "data": {"n": 400, "name": "digits"}}
    asked = {"damping": 0.001, "k": 1, "data": {"n": 400, "name": "digits", "seed": 3}}
    assert differences(held, asked) == [("damping", "0.01", "0.001"), ("data.seed", "(not set)", "3")]


def test_differences_look_into_lists_of_settings():
    held = {"variants": [{"name": "", "damping": 0.0}, {"name": "damped", "damping": 5e-4}], "rows": [1, 2]}
    asked = {"variants": [{"name": "", "damping": 0.0}, {"name": "damped", "damping": 1e-3}], "rows": [1, 3]}
    assert differences(held, asked) == [("rows", "[1, 2]", "[1, 3]"), ("variants.1.damping", "0.0005", "0.001")]


def test_long_values_are_told_apart_by_their_hash():
    (name, one, other), *more = differences({"rows": list(range(100))}, {"rows": [*range(99), 7]})
    assert (name, more) == ("rows", [])
    assert one != other
    assert one.startswith("(100 values, sha256 ")


@given(st.integers(1, 9000))
def test_array_hash_does_not_depend_on_blocks_or_byte_order(rows):
    array = np.arange(rows * 2, dtype="<f8").reshape(rows, 2)
    assert array_hash(array) == array_hash(array.astype(">f8")) == array_hash(np.asfortranarray(array))


def test_array_hash_tells_values_types_and_shapes_apart():
    array = np.arange(6, dtype=np.int64)
    changed = array.copy()
    changed[5] = 0
    others = [changed, array.astype(np.float64), array.reshape(2, 3), array.reshape(3, 2), array[:5]]
    assert len({array_hash(one) for one in [array, *others]}) == 6


def test_versions_of_what_could_move_a_number():
    versions = library_versions()
    assert versions["numpy"] == np.__version__
    assert {"upweight", "python", "torch", "scipy", "h5py"} <= versions.keys()
