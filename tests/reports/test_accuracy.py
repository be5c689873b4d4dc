from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from upweight.reports.accuracy import Accuracies, accuracy
from upweight.reports.runs import group_runs


def recorded(run, test):
    return replace(run, info={**run.info, "accuracy": {"train": 1.0, "test": test}})


def rows(table, **wanted):
    return [row for row in table.rows() if all(row[name] == value for name, value in wanted.items())]


def test_the_record_counts_and_predictions_stand_in_for_it(build):
    run = build()
    assert accuracy(recorded(run, 0.123), "test") == pytest.approx(0.123)
    bare = replace(run, info={})
    assert accuracy(bare, "train") == np.mean(run.main.train.prediction == run.main.train.label)
    assert accuracy(bare, "test") == np.mean(run.main.queries.prediction == run.main.queries.label)


def test_means_and_paired_differences(build):
    natural, robust = [0.60, 0.64, 0.70], [0.71, 0.73, 0.83]
    runs = [recorded(build("natural", seed=s), a) for s, a in enumerate(natural)]
    runs += [recorded(build("robust", seed=s), a) for s, a in enumerate(robust)]
    table = Accuracies(group_runs(runs)).frame()
    (mean,) = rows(table, set="test", source="robust", minus="")
    assert mean["mean"] == pytest.approx(np.mean(robust))
    (difference,) = rows(table, set="test", source="robust", minus="natural")
    test = stats.ttest_rel(robust, natural).confidence_interval(0.95)
    assert (difference["low"], difference["high"]) == pytest.approx((test.low, test.high))
    assert difference["basis"] == "t over seeds"


def test_one_seed_falls_back_on_its_examples(build):
    table = Accuracies(group_runs([build("natural"), build("robust")])).frame()
    (mean,) = rows(table, set="test", source="natural", minus="")
    assert mean["basis"] == "Wilson over examples" and mean["low"] < mean["mean"] < mean["high"]
    (difference,) = rows(table, set="test", source="robust", minus="natural")
    assert difference["basis"] == "normal over examples"


def test_a_record_of_other_examples_gets_no_interval_from_these(build):
    table = Accuracies(group_runs([recorded(build(), 0.123)])).frame()
    (mean,) = rows(table, set="test")
    assert mean["mean"] == pytest.approx(0.123) and np.isnan(mean["low"]) and mean["basis"] == "none"


def test_the_figure_marks_every_run(comparison):
    view = Accuracies(group_runs(comparison))
    ax = view.plot().axes[0]
    marks = {line.get_label(): sorted(line.get_xdata()) for line in ax.lines if line.get_marker() not in ("", "None")}
    for source in ("natural", "robust"):
        expected = [row["accuracy"] for row in rows(view.runs_frame(), source=source, set="test")]
        assert marks[source] == pytest.approx(sorted(expected))
    assert "share" in ax.get_xlabel()
