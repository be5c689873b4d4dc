"""The tables of a report that a terminal shows."""

import pytest
from upweight.reports.summary import summary

GROUP = {"data": "digits", "k": 0, "n": 400, "seeds": [1, 2]}


def row(source, mean, low, high, minus="", **more):
    return {
        "data": "digits",
        "k": 0,
        "n": 400,
        "source": source,
        "minus": minus,
        "mean": mean,
        "low": low,
        "high": high,
    } | more


def stats(accuracy, class_match, groups=(GROUP,)):
    tables = {"accuracy": accuracy, "class_match": class_match}
    columns = {name: {"columns": {key: [r[key] for r in rows] for key in rows[0]}} for name, rows in tables.items()}
    return {"groups": list(groups), "tables": columns}


@pytest.fixture
def table():
    accuracy = [
        row("natural", 0.5, 0.4, 0.6, set="test"),
        row("robust", 0.75, 0.7, 0.8, set="test"),
        row("robust", 0.25, 0.1, 0.4, minus="natural", set="test"),
        row("natural", 1.0, 1.0, 1.0, set="train"),
    ]
    match = [
        row("natural", 0.125, 0.1, 0.2, queries="test", measure="rank 1", method="influence"),
        row("natural", 0.1, None, None, queries="test", measure="rank 1", method="chance"),
        row("natural", 0.9, 0.9, 0.9, queries="train", measure="rank 1", method="influence"),
        row("natural", 0.9, 0.9, 0.9, queries="test", measure="first 100", method="influence"),
        row("natural", 0.9, 0.9, 0.9, queries="test", measure="rank 1", method="cosine") | {"k": 1},
    ]
    (found,) = summary(stats(accuracy, match))
    return found


def test_sources_and_differences_are_columns(table):
    assert list(table.columns) == ["percent [95% interval]", "natural", "robust", "robust minus natural"]
    assert table["natural"].tolist() == ["50.0 [40.0, 60.0]", "12.5 [10.0, 20.0]", "10.0"]
    assert table["robust minus natural"].tolist() == ["+25.0 [+10.0, +40.0]", "", ""]


def test_only_the_queries_first_neighbours_of_this_group_are_shown(table):
    assert table["percent [95% interval]"].tolist() == [
        "test accuracy",
        "class match: influence",
        "class match: chance",
    ]


@pytest.mark.parametrize(
    ("k", "seeds", "words"),
    [
        (0, [1], "the head alone, 1 seed "),
        (1, [1, 2], "the head and the last block, 2 seeds "),
        (3, [1], "the head and the last 3 blocks"),
    ],
)
def test_title_says_what_was_compared(k, seeds, words):
    rows = [row("natural", 0.5, 0.4, 0.6, set="test", queries="test", measure="rank 1", method="influence") | {"k": k}]
    (found,) = summary(stats(rows, rows, [GROUP | {"k": k, "seeds": seeds}]))
    assert found.title.startswith(f"digits, 400 train examples, {words}")
