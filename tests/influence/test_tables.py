"""Tables: immutable, and the same numbers in every form."""

import csv
import io
import json

import numpy as np
import pytest
from upweight import ShapeError, Table, UsageError


@pytest.fixture
def table():
    columns = {"rank": np.array([1, 2]), "score": np.array([0.1, -2.5e-7]), "label": np.array(["cat, tame", "dog"])}
    return Table(columns, title="Two rows")


def test_reading_by_column_and_by_row(table):
    assert len(table) == 2
    assert table["score"].tolist() == [0.1, -2.5e-7]
    assert table.rows() == [
        {"rank": 1, "score": 0.1, "label": "cat, tame"},
        {"rank": 2, "score": -2.5e-7, "label": "dog"},
    ]
    assert type(table.rows()[0]["rank"]) is int  # plain numbers: ready for JSON and for format strings


def test_unknown_column_names_the_ones_there_are(table):
    with pytest.raises(UsageError, match=r"no column 'rate'.*rank, score, label"):
        table["rate"]


def test_csv_reads_back_to_the_same_numbers(table):
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [float(row["score"]) for row in rows] == [0.1, -2.5e-7]
    assert rows[0]["label"] == "cat, tame"


def test_json_reads_back_and_has_no_nan():
    table = Table({"rate": np.array([0.5, np.nan, -np.inf])}, title="t")
    assert json.loads(table.to_json()) == {"title": "t", "rows": [{"rate": 0.5}, {"rate": None}, {"rate": None}]}


def test_text_is_aligned_and_shows_six_digits(table):
    title, head, first, second = table.to_text().splitlines()
    assert title == "Two rows" and head.split() == ["rank", "score", "label"]
    assert first.split() == ["1", "0.1", "cat,", "tame"] and second.split() == ["2", "-2.5e-07", "dog"]
    end = head.index("score") + len("score")
    assert first[end - 3 : end] == "0.1" and second[end - 8 : end] == "-2.5e-07"


def test_a_table_cannot_be_changed_from_outside(table):
    with pytest.raises(ValueError, match="read-only"):
        table["score"][0] = 7
    source = np.array([1.0, 2.0])
    copied = Table({"x": source})
    source[0] = 9.0
    assert copied["x"].tolist() == [1.0, 2.0] and source.flags.writeable


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="one length"):
        Table({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ShapeError, match="'a' has 2 axes"):
        Table({"a": np.zeros((2, 2))})


def test_an_empty_table_has_a_header_and_no_rows():
    table = Table({"rank": np.array([], dtype=np.int64), "score": np.array([])})
    assert len(table) == 0 and table.rows() == [] and table.to_csv() == "rank,score\n"
