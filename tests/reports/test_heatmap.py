from dataclasses import replace

import numpy as np
import pytest
from upweight.influence.scores import Scores
from upweight.reports.heatmap import HeatMaps
from upweight.reports.runs import group_runs
from upweight.reports.settings import ReportSettings


def maps(runs, side="test", **settings):
    (group,) = group_runs(runs)
    return HeatMaps(group, side, ReportSettings(**settings))


def scaled(run, factor):
    scores = {
        name: Scores(s.matrix * factor, s.queries, s.train, spectrum=s.spectrum, meta=s.meta)
        for name, s in run.scores.items()
    }
    return replace(run, scores=scores)


def test_class_means_are_those_of_the_matrix(comparison):
    table = maps(comparison).frame()
    run = comparison[1]
    scores = run.scores["damped"]
    inside = np.ix_(scores.queries.label == 3, scores.train.label == 8)
    (row,) = [
        r
        for r in table.rows()
        if (r["source"], r["variant"], r["query_class"], r["train_class"]) == (run.source, "damped", "3", "8")
    ]
    assert row["mean"] == pytest.approx(scores.matrix[inside].mean(), rel=1e-5)
    rms = np.sqrt(np.mean(scores.matrix.astype(float) ** 2))
    assert row["mean_over_rms"] == pytest.approx(row["mean"] / rms, rel=1e-5)


def test_the_size_of_a_sources_scores_does_not_matter(build):
    natural, robust = build("natural"), build("robust")
    one, other = maps([natural, robust]), maps([natural, scaled(robust, 1000.0)])
    np.testing.assert_allclose(one.frame()["mean_over_rms"], other.frame()["mean_over_rms"], rtol=1e-4)
    assert one.limit == pytest.approx(other.limit, rel=1e-4)
    assert other.facts()["frobenius"][1] == pytest.approx(1000 * one.facts()["frobenius"][1], rel=1e-4)


def test_rows_are_queries_and_columns_train_examples(build):
    run = build()
    old = run.scores[""]
    asymmetric = (old.queries.label[:, None] == 2) & (old.train.label[None, :] == 7)  # only 7s influence 2s
    odd = replace(run, scores={"": Scores(asymmetric.astype(np.float32), old.queries, old.train, meta={})})
    ax = maps([odd]).plot().axes[0]
    places = {
        "row": dict(zip((t.get_text() for t in ax.get_yticklabels()), ax.get_yticks(), strict=True)),
        "column": dict(zip((t.get_text() for t in ax.get_xticklabels()), ax.get_xticks(), strict=True)),
    }
    shown = ax.images[0].get_array()
    assert shown[round(places["row"]["2"]), round(places["column"]["7"])] > 0
    assert shown[round(places["row"]["7"]), round(places["column"]["2"])] == 0
    assert ax.images[0].origin == "upper" and ax.get_ylim()[0] > ax.get_ylim()[1]  # row 0 at the top, as in the table
    assert ax.get_ylabel() == "test queries, by class" and ax.get_xlabel() == "train examples, by class"


def test_colours_are_centred_on_zero_and_clipped_as_stated(comparison):
    view = maps(comparison, clip=0.9)
    figure = view.plot()
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 4  # two variants of two sources
    assert {image.get_clim() for image in images} == {(-view.limit, view.limit)}
    shown = np.abs(np.concatenate([image.get_array().ravel() for image in images]))
    assert np.mean(shown > view.limit) == pytest.approx(0.1, abs=0.01)
    assert view.facts()["share_beyond"].mean() == pytest.approx(0.1, abs=0.01)


def test_train_on_train_keeps_self_in_the_picture_alone(build):
    run = build()
    own = run.scores[""].on_train
    diagonal = Scores(np.eye(60, dtype=np.float32), own.queries, own.train, on_itself=True, meta={})
    outer = run.scores[""]
    odd = replace(run, scores={"": Scores(outer.matrix, outer.queries, outer.train, meta={}, on_train=diagonal)})
    view = maps([odd], "train")
    assert np.trace(view.panels[0].blocks.values) == pytest.approx(60)
    means = view.frame()["mean"]
    assert np.nanmax(np.abs(means)) == 0
    assert view.facts()["frobenius"][0] == pytest.approx(np.sqrt(60))


def test_numbers_stand_in_the_class_panel(comparison):
    view = maps(comparison)
    ax = view.plot_classes().axes[0]
    written = [float(text.get_text().replace("−", "-")) for text in ax.texts]
    expected = view.frame()["mean_over_rms"][:100]
    np.testing.assert_allclose(written, expected, atol=0.0051)


def test_many_classes_are_drawn_without_numbers(build):
    run = build()
    old = run.scores[""]
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(60) % 40)
    examples = replace(old.train, label=labels)
    odd = replace(
        run,
        scores={"": Scores(rng.standard_normal((60, 60)), examples, examples, meta={})},
        class_names=[f"species {c}" for c in range(40)],
    )
    view = maps([odd])
    ax = view.plot_classes().axes[0]
    assert not ax.texts
    assert len(ax.get_xticklabels()) == 20
    assert len(view.frame()) == 1600


def test_zero_scores_draw_too(build):
    view = maps([scaled(build(), 0.0)])
    assert view.limit == 0
    assert view.plot().axes and view.plot_classes().axes
    assert np.all(view.frame()["mean_over_rms"] == 0)


def test_nothing_to_draw_is_false(build):
    assert not maps([build(on_train=False)], "train")
