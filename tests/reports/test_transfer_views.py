from itertools import product

import numpy as np
import pytest
from sweeps import history, runs, sources
from upweight.reports.style import strokes
from upweight.reports.transfer_heads import by_hidden, without_depth
from upweight.reports.transfer_lines import MOST, MOST_PANELS, MOST_SOURCES
from upweight.reports.transfer_tables import Sweep
from upweight.reports.transfer_views import by_blocks, by_epoch, by_size, difference_by_size, few_data

ATTACK = "L2 1, PGD-20"


def sweep(rows, of=(), said=(), attack=""):
    return Sweep(runs(*rows), history(*said), sources(*of), attack)


def value(**row):
    """An accuracy that tells where it comes from."""
    k = {"all": 9}.get(row.get("k", "0"), row.get("k", "0"))
    return (
        0.5
        + 0.01 * int(k)
        + row.get("n", 100) / 10000
        + 0.05 * (row.get("source") == "robust")
        + 0.001 * row.get("seed", 0)
    )


def grid(measured=("test_accuracy",), **fields):
    rows = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    return [{**row, **{name: value(**row) for name in measured}} for row in rows]


def points(view):
    """Panel title, line label -> what is drawn."""
    curves, drawn = view.curves, {}
    for ax in (ax for ax in curves.plot().axes if ax.get_visible()):
        lines = [line for line in ax.lines if len(line.get_xdata()) and line.get_linestyle() != "None"]
        drawn[ax.get_title()] = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    return drawn


def test_accuracy_by_size_holds_every_cell_and_draws_it():
    view = by_size(sweep(grid(source=["natural", "robust"], k=["0", "3"], n=[100, 400], seed=[0, 1])))
    frame = view.curves.frame()
    assert len(frame) == 8 and set(frame["measure"]) == {"accuracy"}
    assert frame["mean"] == pytest.approx([value(**row) + 0.0005 for row in frame.select(["source", "k", "n"]).rows()])
    drawn = points(view)
    assert list(drawn) == ["k = 0", "k = 3"]
    assert [y for _, y in drawn["k = 3"]] == [
        pytest.approx([value(source=s, k="3", n=n) + 0.0005 for n in (100, 400)]) for s in ("natural", "robust")
    ]
    assert drawn["k = 0"][0][0] == [100, 400]
    ax = view.curves.plot().axes[0]
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["100", "400"]


def test_views_whose_axis_has_one_value_are_absent():
    made = sweep(grid(source=["natural", "robust"], recipe=["", "LwF 0.005"], seed=[0, 1]))
    views = [by_size(made), difference_by_size(made), by_blocks(made), by_hidden(made), few_data(made), *by_epoch(made)]
    assert [view.name for view in views if view.curves] == []


def test_sizes_of_different_data_make_no_axis():
    rows = [{"data": "digits", "n": 1000}, {"data": "mnist", "n": 60000}]
    assert not by_size(sweep(rows)).curves


def test_a_panel_is_drawn_when_one_of_its_lines_has_two_places():
    rows = grid(source=["natural"], k=["0"], n=[100, 400]) + grid(source=["robust"], k=["0", "3"], n=[100])
    view = by_size(sweep(rows))
    assert {(row["source"], row["k"], row["n"]) for row in view.curves.rows} == {
        ("natural", "0", 100), ("natural", "0", 400), ("robust", "0", 100)
    }  # fmt: skip


def test_differences_by_size_are_from_the_first_source():
    rows = grid(source=["robust", "natural"], k=["0", "all"], n=[100, 400], seed=[0, 1, 2])
    rows = [row for row in rows if (row["source"], row["k"], row["n"], row["seed"]) != ("natural", "all", 400, 2)]
    view = difference_by_size(sweep(rows))
    frame = view.curves.frame()
    assert set(frame["source"]) == {"robust"} and set(frame["minus"]) == {"natural"}
    assert frame["mean"] == pytest.approx([0.05] * 4)
    assert sorted(frame["seeds"]) == [2, 3, 3, 3]
    fig = view.curves.plot()
    assert fig.axes[0].get_title() == "robust minus natural"
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["k = 0", "k = all"]
    assert "percentage points" in fig.axes[0].get_ylabel()


def test_all_blocks_come_last():
    made = sweep(grid(source=["natural"], k=["all", "10", "9", "0"], seed=[0, 1]))
    view = by_blocks(made)
    assert [row["k"] for row in view.curves.rows] == ["0", "9", "10", "all"]
    ax = view.curves.plot().axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "9", "10", "all"]
    assert list(ax.lines[0].get_xdata()) == [0, 1, 2, 3]


BLOCKS = grid(
    ("test_accuracy", "robust_accuracy"), source=["natural", "robust"], k=["0", "1"], data=["digits", "fashion-mnist"]
)


def test_the_level_of_the_source_itself_stands_on_its_own_data_alone():
    of = [
        {"source": "natural", "natural_accuracy": 0.91, "robust_accuracy": 0.02, "attack": "Linf 0.1, PGD-20"},
        {"source": "robust", "natural_accuracy": 0.82, "robust_accuracy": 0.61, "attack": ATTACK},
    ]
    view = by_blocks(sweep(BLOCKS, of, attack=ATTACK))
    found = {(level.panel, level.line[0]): level.height for level in view.curves.levels}
    assert found == {
        (("fashion-mnist, accuracy", ""), "natural"): 0.91,
        (("fashion-mnist, accuracy", ""), "robust"): 0.82,
        (("fashion-mnist, robust accuracy", ""), "robust"): 0.61,  # the other was measured with another attack
    }
    assert "Dashed" in view.caption
    view.curves.plot()
    untold = by_blocks(sweep(BLOCKS, [{**row, "natural_accuracy": np.nan} for row in of[:1]], attack=ATTACK))
    assert not untold.curves.levels and "Dashed" not in untold.caption


def test_reduced_images_are_not_the_sources_own():
    rows = [{**row, "resolution": 8.0} for row in BLOCKS]
    assert not by_blocks(sweep(rows, [{"source": "natural"}], attack=ATTACK)).curves.levels


def test_few_data_counts_images_a_class_and_seconds():
    rows = grid(("test_accuracy", "robust_accuracy"), source=["robust"], n=[100, 400])
    rows = [{**row, "seconds": row["n"] / 10} for row in rows]
    frame = few_data(sweep(rows, attack=ATTACK)).curves.frame()
    assert frame["images_per_class"].tolist() == [10, 40] * 3
    assert frame["measure"].tolist() == ["accuracy"] * 2 + ["robust accuracy"] * 2 + ["seconds"] * 2
    assert frame["mean"][-2:].tolist() == [10, 40]
    ax = few_data(sweep(rows, attack=ATTACK)).curves.plot().axes[2]
    assert "seconds" in ax.get_ylabel()


def test_few_data_without_classes_counts_images():
    rows = grid(recipe=["", "LwF 0.005"], n=[100, 400])
    view = few_data(sweep([{**row, "classes": 0} for row in rows]))
    assert "images_per_class" not in view.curves.frame().columns
    assert view.curves.axis.label.startswith("train images n")


def test_arms_that_have_a_k_of_their_own_share_a_panel():
    rows = [
        {"recipe": r, "k": k, "n": n, "robust_accuracy": 0.3}
        for r, k in (("frozen", "0"), ("LwF", "all"))
        for n in (100, 400)
    ]
    for view in (by_size(sweep(rows)), few_data(sweep(rows, attack=ATTACK))):
        assert list(view.curves.labels.values()) == ["frozen, k = 0", "LwF, k = all"]
        assert len({view.curves.panel(row) for row in view.curves.rows}) == len({
            row["measure"] for row in view.curves.rows
        })
    curves = by_size(sweep([*rows, {"recipe": "LwF", "k": "0", "n": 100}])).curves
    assert {curves.panel(row)[1] for row in curves.rows} == {"k = 0", "k = all"}


def test_epochs_are_a_figure_for_each_target():
    rows = grid(data=["digits", "mnist"], source=["natural", "robust"], seed=[0, 1])
    said = [
        {**row, "epoch": epoch, "test_accuracy": row["test_accuracy"] - 1 / epoch}
        for row in rows
        for epoch in (1, 2, 4)
    ]
    first, second = by_epoch(sweep(rows, said=said))
    assert (first.name, second.name) == ("by-epoch-1", "by-epoch-2")
    frame = second.curves.frame()
    assert set(frame["data"]) == {"mnist"} and frame["epoch"].tolist() == [1, 2, 4] * 2
    assert frame["mean"][:3] == pytest.approx(value() + 0.0005 - 1 / np.array([1, 2, 4]))


HEADS = [("", 0), ("1 hidden layer", 1), ("2 hidden layers", 2)]


def heads(names, **more):
    return [
        {"source": s, "recipe": recipe, "hidden": h, "test_accuracy": 0.8 + 0.01 * h + 0.1 * (s == "robust"), **more}
        for s in ("natural", "robust")
        for recipe, h in names
    ]


def test_heads_of_one_source_are_one_line():
    view = by_hidden(sweep(heads(HEADS)))
    assert list(view.curves.labels.values()) == ["natural", "robust"]
    assert points(view) == {
        "": [([0, 1, 2], pytest.approx([0.8, 0.81, 0.82])), ([0, 1, 2], pytest.approx([0.9, 0.91, 0.92]))]
    }


def test_heads_with_other_settings_are_other_lines():
    rows = heads(HEADS) + heads([("LwF 0.1, " + name if name else "LwF 0.1", h) for name, h in HEADS], lwf=0.1)
    view = by_hidden(sweep(rows))
    assert list(view.curves.labels.values()) == [
        "natural, plain",
        "natural, LwF 0.1",
        "robust, plain",
        "robust, LwF 0.1",
    ]


def test_heads_whose_settings_are_not_told_go_by_their_names():
    rows = heads([(f"MLP {h}", h) for h in (1, 2)]) + heads([(f"MLP {h}, dropout 0.2", h) for h in (1, 2)])
    view = by_hidden(sweep(rows))
    assert list(view.curves.labels.values())[:2] == ["natural, MLP", "natural, MLP, dropout 0.2"]


@pytest.mark.parametrize(
    ("recipe", "hidden", "left"),
    [
        ("2 hidden layers", 2, ""),
        ("LwF 0.005, 1 hidden layer", 1, "LwF 0.005"),
        ("dropout 0.2, 2 hidden layers", 2, "dropout 0.2"),
        ("MLP2", 2, "MLP2"),
        ("", 0, ""),
    ],
)
def test_a_recipe_without_its_depth(recipe, hidden, left):
    assert without_depth(recipe, hidden) == left


def test_large_sweeps_are_drawn_in_part_and_held_whole():
    rows = grid(source=[f"s{i}" for i in range(20)], k=["0", "1"], n=[100, 200, 400, 800, 1600])
    view = by_blocks(sweep(rows))
    drawn = [row for row in view.curves.rows if view.curves.drawn(row)]
    assert len(view.curves.frame()) == 200
    assert len({row["source"] for row in drawn}) == MOST_SOURCES and "s0" in {row["source"] for row in drawn}
    assert sorted({row["n"] for row in drawn}) == [100, 400, 1600] and MOST == 3
    assert len(view.curves.plot().legends[0].get_texts()) == MOST_SOURCES


def test_too_many_panels_leave_the_greatest_size():
    data = [f"d{i}" for i in range(MOST_PANELS // MOST + 1)]
    view = by_blocks(sweep(grid(data=data, k=["0", "1"], n=[100, 200, 400])))
    assert {row["n"] for row in view.curves.rows if view.curves.drawn(row)} == {400}
    assert len([ax for ax in view.curves.plot().axes if ax.get_visible()]) == len(data)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (7, 1), (2, 4), (4, 2), (12, 3), (30, 1), (15, 6)])
def test_no_two_lines_look_alike(first, second):
    lines = [(f"s{i}", f"r{j}") for i in range(first) for j in range(second)]
    assert len(set(strokes(lines).values())) == len(lines)
