from dataclasses import replace

import numpy as np
import pytest
from upweight import UsageError
from upweight.influence.tables import Table
from upweight.reports.runs import group_runs, order_sources, stack, table_of


def test_groups_are_runs_that_differ_in_source_and_seed(build_all):
    runs = build_all(ks=(1, 0), seeds=2)
    groups = group_runs(runs)
    assert [(g.k, g.n, len(g.runs), g.seeds) for g in groups] == [(0, 60, 4, (0, 1)), (1, 60, 4, (0, 1))]
    assert groups[0].key == "digits-k0-n60"
    other = replace(runs[0], info={"data": {"name": "Fashion MNIST"}})
    assert {g.key for g in group_runs([*runs, other])} == {"digits-k0-n60", "digits-k1-n60", "fashion-mnist-k1-n60"}


def test_natural_comes_first():
    assert order_sources(["robust", "linf", "natural", "robust"]) == ("natural", "robust", "linf")


def test_drawn_runs_share_the_seed_that_most_sources_have(build):
    runs = [build("natural", seed=0), build("natural", seed=1), build("robust", seed=1), build("robust", seed=2)]
    (group,) = group_runs(runs)
    assert group.first_seed == 1
    assert [run.name for run in group.drawn] == ["natural-k0-s1", "robust-k0-s1"]


def test_no_runs_are_refused():
    with pytest.raises(UsageError, match="at least one run"):
        group_runs([])


def test_the_same_run_twice_is_refused(build):
    run = build()
    with pytest.raises(UsageError, match="leave one out"):
        group_runs([run, run])
    with pytest.raises(UsageError, match="natural-k0-s0 and copy"):
        group_runs([run, replace(run, name="copy")])


def test_other_queries_are_refused(build):
    with pytest.raises(UsageError, match="same queries"):
        group_runs([build("natural", m=50), build("robust", m=40)])


def test_a_run_without_scores_is_refused(build):
    with pytest.raises(UsageError, match="upweight attribute"):
        replace(build(), scores={})


def test_scores_of_one_kind_are_found_where_the_main_variant_lacks_them(build):
    run = build()
    run.scores[""].on_train = None
    assert run.side("", "train") is None
    assert run.main_side("train") is run.scores["damped"].on_train
    assert run.main_side("test") is run.scores[""]


def test_stack_fills_what_a_table_lacks():
    joined = stack([
        Table({"a": np.array([1.0]), "b": np.array(["x"])}),
        Table({"a": np.array([2.0]), "c": np.array([3.0])}),
    ])
    assert joined["b"].tolist() == ["x", ""]
    np.testing.assert_array_equal(joined["c"], [np.nan, 3.0])


def test_a_table_without_records_keeps_its_columns():
    assert list(table_of([], "nothing", ["a", "b"]).columns) == ["a", "b"]
