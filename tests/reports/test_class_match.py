from dataclasses import replace

import numpy as np
import pytest
from upweight.influence.examples import Examples
from upweight.influence.scores import Scores
from upweight.reports.class_match import ClassMatch
from upweight.reports.matches import random_order
from upweight.reports.runs import group_runs
from upweight.reports.settings import ReportSettings

SETTINGS = ReportSettings(ranks=30)


@pytest.fixture(scope="module", params=["test", "train"])
def match(request, comparison):
    (group,) = group_runs(comparison)
    return ClassMatch(group, request.param, SETTINGS)


def rows(table, **wanted):
    return [row for row in table.rows() if all(row[name] == value for name, value in wanted.items())]


def test_measures_of_a_run_are_those_of_its_scores(match, comparison):
    table = match.runs_frame()
    run = comparison[0]
    for variant, method in (("", "influence"), ("damped", "influence_damped"), ("predicted", "influence_predicted")):
        scores = run.side(variant, match.side)
        curve = scores.class_match(30)
        (first,) = rows(table, run=run.name, measure="rank 1", method=method)
        assert (first["mean"], first["low"], first["high"]) == pytest.approx((
            curve["rate"][0],
            curve["low"][0],
            curve["high"][0],
        ))
        (whole,) = rows(table, run=run.name, measure="first 30", method=method)
        assert whole["mean"] == pytest.approx(curve["cumulative"][-1], rel=1e-5)
        (enough,) = rows(table, run=run.name, measure="at least 3 of 5", method=method)
        assert enough["mean"] == pytest.approx(scores.at_least(3, 5)["rate"][0])


@pytest.mark.parametrize("baseline", ["residual", "cosine", "gradient", "random_head"])
def test_baselines_are_those_of_the_main_scores(match, comparison, baseline):
    run = comparison[1]
    curve = run.side("", match.side).class_match(30)
    (first,) = rows(match.runs_frame(), run=run.name, measure="rank 1", method=baseline)
    assert first["mean"] == pytest.approx(curve[baseline][0])


def test_the_residual_at_the_predicted_label_reaches_the_accuracy_at_best(comparison):
    (group,) = group_runs(comparison)
    view = ClassMatch(group, "test", SETTINGS)
    for run in comparison:
        (row,) = rows(view.runs_frame(), run=run.name, measure="rank 1", method="residual_predicted")
        assert row["mean"] == pytest.approx(run.info["accuracy"]["test"])


def test_curves_are_means_over_seeds(match, comparison):
    robust = [run for run in comparison if run.source == "robust"]
    expected = np.mean([run.side("", match.side).class_match(30)["rate"] for run in robust], axis=0)
    found = rows(match.curves(), method="influence", source="robust")
    assert [row["rank"] for row in found] == list(range(1, 31))
    np.testing.assert_allclose([row["rate"] for row in found], expected)
    assert {row["basis"] for row in found} == {"t over seeds"}


def test_differences_are_paired_by_seed(match, comparison):
    rates = {
        source: [r.side("", match.side).class_match(1)["cosine"][0] for r in comparison if r.source == source]
        for source in ("natural", "robust")
    }
    (row,) = rows(match.frame(), measure="rank 1", method="cosine", source="robust", minus="natural")
    assert row["mean"] == pytest.approx(np.mean(np.subtract(rates["robust"], rates["natural"])))
    assert row["seeds"] == 3 and row["low"] < row["mean"] < row["high"]


def test_chance_is_what_random_orders_reach():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [9, 6, 3])

    def some(values):
        return Examples(np.arange(len(values)), values, values, np.zeros(len(values)))

    orders = [Scores(rng.random((18, 18)), some(labels), some(labels), on_itself=True) for _ in range(400)]
    settings = ReportSettings(hits=2, of=4)
    exact = random_order(orders[0], settings)
    tried = [
        [s.class_match(10)["rate"][0], s.at_least(2, 4)["rate"][0], s.class_match(10)["cumulative"][-1]] for s in orders
    ]
    np.testing.assert_allclose(
        [exact["rank1"], exact["at_least"], exact["cumulative"]], np.mean(tried, axis=0), atol=0.02
    )


def test_chance_stands_among_the_methods(match):
    found = rows(match.frame(), method="chance", source="natural")
    assert [row["measure"] for row in found] == ["rank 1", "at least 3 of 5", "first 30"]
    assert 0.05 < found[0]["mean"] < 0.2 and found[1]["mean"] < found[0]["mean"]


def test_panels_are_labelled_and_hold_every_source(match):
    figure = match.plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:4] == [
        "influence,\nundamped",
        "influence,\ndamping 0.0005",
        "influence,\npredicted label,\nundamped",
        "feature cosine\n(sees no label)",
    ]
    assert len(figure.axes[0].collections) == 2  # an interval band for each source
    assert figure.axes[0].get_ylabel() == "match rate at the rank"
    assert [text.get_text() for text in figure.legends[0].texts] == ["natural", "robust", "chance"]


def test_summary_points_are_the_table(match):
    ax = match.plot_summary().axes[0]
    (row,) = rows(match.frame(), measure="rank 1", method="influence", source="natural", minus="")
    places = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert row["mean"] == pytest.approx(places[0])
    assert len(places) == len(match.labels)


def test_without_features_only_the_scores_and_chance_are_left(build):
    run = build()
    plain = {}
    for variant, scores in run.scores.items():
        q, t = (replace(e, features=None, residual=None) for e in (scores.queries, scores.train))
        plain[variant] = Scores(scores.matrix, q, t, spectrum=scores.spectrum, meta=scores.meta)
    (group,) = group_runs([replace(run, scores=plain)])
    view = ClassMatch(group, "test", SETTINGS)
    assert set(view.frame()["method"]) == {"influence", "influence_damped", "influence_predicted", "chance"}
    assert not ClassMatch(group, "train", SETTINGS)
