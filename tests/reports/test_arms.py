"""Runs of one source under several recipes, and of several k, beside each other in one report."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from upweight import UsageError
from upweight.reports.accuracy import Accuracies
from upweight.reports.class_match import ClassMatch
from upweight.reports.conclusions import conclude
from upweight.reports.heatmap import HeatMaps
from upweight.reports.neighbours import Neighbours
from upweight.reports.page import write_report
from upweight.reports.runs import group_runs, order_sources
from upweight.reports.saliency import Saliency
from upweight.reports.settings import ReportSettings
from upweight.reports.style import source_colours, source_markers
from upweight.reports.summary import summary

SETTINGS = ReportSettings(ranks=5, neighbours=1, pixels=10, dpi=30)
RECIPES = ("", "1 hidden layer", "2 hidden layers", "LwF 0.005", "NEFT 0.4")


def arm(build, recipe, source="robust", **options):
    run = build(source, variants=("",), on_train=False, m=20, **options)
    return replace(run, recipe=recipe, name=f"{run.name}-{recipe or 'plain'}")


@pytest.fixture(scope="module")
def runs(build):
    natural = build("natural", variants=("",), on_train=False, m=20)
    return [natural, *(arm(build, recipe) for recipe in RECIPES)]


def plain(runs):
    """Without pictures, which are tests of their own here."""
    return [replace(run, train_images=None, saliency=None) for run in runs]


def arms(runs, **options):
    return [group.sources for group in group_runs(runs, **options)]


def test_recipes_of_one_source_stand_beside_each_other(runs):
    (names,) = arms(runs)
    assert names == ("natural", "robust", *(f"robust, {recipe}" for recipe in RECIPES[1:]))


def test_a_recipe_that_all_share_is_not_repeated_in_every_name(build):
    shared = [arm(build, "LwF 0.005", source) for source in ("robust", "natural")]
    assert arms(shared) == [("natural", "robust")]
    assert arms([*shared, arm(build, "", "natural")]) == [("natural", "natural, LwF 0.005", "robust, LwF 0.005")]


def test_natural_arms_come_first():
    found = order_sources(["robust", "natural, NEFT 0.4", "naturally", "natural", "robust, LwF 0.005"])
    assert found == ("natural", "natural, NEFT 0.4", "robust", "naturally", "robust, LwF 0.005")


def test_runs_that_only_differ_in_their_training_are_told_apart_by_it(build):
    def trained(name, **settings):
        run = build("robust", variants=("",))
        return replace(run, name=name, info={**run.info, "settings": {"epochs": 20, "momentum": 0.9, **settings}})

    slow, fast = trained("slow", learning_rate=0.01), trained("fast", learning_rate=0.1)
    assert arms([slow, fast]) == [("robust, learning rate 0.01", "robust, learning rate 0.1")]
    with pytest.raises(UsageError, match="fast and twin have the same source, recipe, k, n and seed"):
        group_runs([fast, replace(fast, name="twin")])


def test_k_tells_arms_apart_where_that_was_asked_for(build):
    runs = [arm(build, "", source, k=k) for source in ("natural", "robust") for k in (0, 2)]
    assert arms(runs) == [("natural", "robust")] * 2
    (group,) = group_runs(runs, across_k=True)
    assert group.sources == ("natural, k = 0", "natural, k = 2", "robust, k = 0", "robust, k = 2")
    assert group.key == "digits-n60" and group.k is None


def test_the_same_images_at_another_resolution_are_another_target(build):
    run = build("robust", variants=("",))
    data = {**run.info["data"], "settings": {"resolution": 4}}
    groups = group_runs([run, replace(run, name="small", info={**run.info, "data": data})])
    assert [(group.data, group.key) for group in groups] == [
        ("digits", "digits-k0-n60"),
        ("digits at 4 pixels", "digits-at-4-pixels-k0-n60"),
    ]


def test_an_arm_keeps_its_colour_in_groups_that_lack_others(build):
    alone = [arm(build, recipe, k=1) for recipe in ("NEFT 0.4",)]
    groups = group_runs([arm(build, "", k=0), arm(build, "LwF 0.005", k=0), *alone])
    colours = [source_colours(group.order)["robust, NEFT 0.4"] for group in groups]
    assert len(groups) == 2 and colours[0] == colours[1]
    (label,) = (t for t in Saliency(groups[1], SETTINGS).plot().axes[0].texts if t.get_text() == "robust\nNEFT 0.4")
    assert label.get_color() == colours[0]
    legend = Accuracies(groups).plot().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["robust", "robust, LwF 0.005", "robust, NEFT 0.4"]


def test_sixty_arms_differ_in_colour_or_marker():
    names = [str(i) for i in range(60)]
    colours, markers = source_colours(names), source_markers(names)
    assert len({(colours[name], markers[name]) for name in names}) == 60


def test_input_gradients_have_a_row_for_each_arm_with_room_for_its_name(runs):
    (group,) = group_runs(runs)
    figure = Saliency(group, SETTINGS).plot()
    renderer = FigureCanvasAgg(figure).get_renderer()
    (ax,) = figure.axes
    images = [image for image in ax.images if image.get_array().shape == (28, 28, 3)]
    assert len(images) == 6 * 10
    boxes = {t.get_text().replace("\n", ", "): t.get_window_extent(renderer) for t in ax.texts}
    first = min(image.get_window_extent(renderer).x0 for image in images)
    for name in group.sources:
        assert boxes[name].x0 >= 0 and boxes[name].x1 <= first


def test_many_arms_are_drawn_below_each_other(runs):
    (group,) = group_runs(runs)
    few = group_runs(runs[:2])[0]
    wide, tall = (np.array(Neighbours(g, SETTINGS).plot().get_size_inches()) for g in (few, group))
    assert tall[0] == pytest.approx(wide[0]) and tall[1] > 2.5 * wide[1]
    said = [t.get_text() for t in Neighbours(group, SETTINGS).plot().axes[0].texts]
    assert [text for text in said if text in group.sources] == list(group.sources)
    cells = [ax for ax in HeatMaps(group, "test", SETTINGS).plot().axes if ax.get_title()]
    assert [ax.get_title().replace("\n", " ") for ax in cells] == [f"{name}, undamped" for name in group.sources]
    assert [bool(ax.get_ylabel()) for ax in cells] == [True, False, False] * 2
    assert [bool(ax.get_xlabel()) for ax in cells] == [False] * 3 + [True] * 3


def test_a_report_of_arms(runs, tmp_path):
    stats = write_report(plain(runs), tmp_path, SETTINGS)
    assert stats["sources"] == list(group_runs(runs)[0].sources)
    rows = stats["tables"]["class_match"]["columns"]
    assert set(rows["minus"]) == {"", "natural"}
    page = (tmp_path / "index.html").read_text()
    assert "plain; 1 hidden layer; 2 hidden layers; LwF 0.005; NEFT 0.4" in page
    assert "<dd>natural, robust</dd>" in page
    (table,) = summary(stats)
    lines = [row["source"] for row in table.rows() if row["percent [95% interval]"] == "test accuracy"]
    assert lines == stats["sources"]
    recorded = [run.info["accuracy"]["test"] for run in runs]
    assert [float(row["share"].split()[0]) for row in table.rows()[:6]] == pytest.approx(
        [100 * share for share in recorded], abs=0.051
    )
    assert [bool(row["minus natural"]) for row in table.rows()[:6]] == [False] + [True] * 5


def test_conclusions_of_many_arms_are_sorted_out(runs):
    (group,) = group_runs(runs)
    match = ClassMatch(group, "test", SETTINGS)
    said = next(sentence for sentence in conclude(match) if sentence.startswith("Feature cosine"))
    rates = {s: float(match.estimate("rank1", "cosine", s).mean[0]) for s in group.sources}
    worst, best = (choose(rates, key=rates.get) for choose in (min, max))
    assert f"{100 * rates[worst]:.1f}% (" in said and f" to {100 * rates[best]:.1f}% (" in said
    sides = dict(re.findall(r"(higher|lower|not told apart) \((.*?)\)", said.partition("against natural: ")[2]))
    for source in group.sources[1:]:
        found = match.estimate("rank1", "cosine", source, "natural")
        side = "higher" if found.low[0] > 0 else "lower" if found.high[0] < 0 else "not told apart"
        assert source in sides[side]


def test_a_report_across_k(build, tmp_path):
    runs = [arm(build, "", source, k=k) for source in ("natural", "robust") for k in (0, 1)]
    stats = write_report(plain(runs), tmp_path, replace(SETTINGS, across_k=True))
    assert [(group["k"], group["key"]) for group in stats["groups"]] == [(None, "digits-n60")]
    assert set(stats["tables"]["accuracy"]["columns"]["k"]) == {None}
    assert stats["tables"]["accuracy_runs"]["columns"]["k"] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert "against natural, k = 0: " in (tmp_path / "index.html").read_text()
    json.loads((tmp_path / "stats.json").read_text())
    (table,) = summary(stats)
    assert "every k" in table.title and len(table) == 4 * 7
