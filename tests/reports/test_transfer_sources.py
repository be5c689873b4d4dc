import numpy as np
import pytest
from scipy import stats
from sweeps import history, runs, seeds, sources
from upweight.reports.transfer_accuracy import SourceAccuracy, correlate
from upweight.reports.transfer_recipes import Recipes
from upweight.reports.transfer_sources import best_grid, best_radii, by_radius, families, radius_words
from upweight.reports.transfer_tables import Sweep

EPS = {"natural": 0.0, "a": 0.25, "b": 1.0, "c": 3.0}
FAMILY = [{"source": s, "norm": "l2" if e else "", "eps": e} for s, e in EPS.items()]
ACCURACY = {"natural": [0.70, 0.72, 0.71], "a": [0.75, 0.74, 0.77], "b": [0.78, 0.79, 0.77], "c": [0.60, 0.64, 0.62]}
RUNS = [row for source, values in ACCURACY.items() for row in seeds(values, source=source)]


def sweep(rows, of=(), **more):
    return Sweep(runs(*rows), history(), sources(*of), **more)


def linf(*radii):
    return [{"source": f"linf {r}", "norm": "linf", "eps": r} for r in radii]


def test_the_natural_source_is_in_every_family():
    of = [*FAMILY, *linf(0.01, 0.02)]
    found = families(sweep([{"source": row["source"]} for row in of], of))
    assert found == {
        "L2": {0.0: "natural", 0.25: "a", 1.0: "b", 3.0: "c"},
        "L∞": {0.0: "natural", 0.01: "linf 0.01", 0.02: "linf 0.02"},
    }


def test_widths_and_feature_distance_make_families_of_their_own():
    wide = [{**row, "source": f"wide {row['source']}", "architecture": "wide"} for row in FAMILY]
    fdm = [{"source": f"fdm {e}", "norm": "l2", "eps": e, "fdm": 0.01} for e in (0.5, 1.0)]
    twin = [{"source": "b again", "norm": "l2", "eps": 1.0}]
    of = [*FAMILY, *wide, *fdm, *twin]
    found = families(sweep([{"source": row["source"]} for row in of], of))
    assert found["L2, wide"] == {0.0: "wide natural", 0.25: "wide a", 1.0: "wide b", 3.0: "wide c"}
    assert found["L2, small_resnet, FDM 0.01"] == {0.0: "natural", 0.5: "fdm 0.5", 1.0: "fdm 1.0"}
    assert set(found) == {"L2, small_resnet", "L2, wide", "L2, small_resnet, FDM 0.01"}  # the twin has too few radii


def test_unknown_and_few_radii_are_no_family():
    assert families(sweep(RUNS, [{**row, "eps": np.nan} for row in FAMILY])) == {}
    assert families(sweep(RUNS, FAMILY[:2])) == {}
    assert not by_radius(sweep(RUNS, FAMILY[:2])).curves and not by_radius(sweep(RUNS)).curves


def test_accuracy_by_radius_rings_the_best():
    view = by_radius(sweep(RUNS, FAMILY))
    frame = view.curves.frame()
    assert frame["eps"].tolist() == [0, 0.25, 1, 3]
    assert frame["mean"] == pytest.approx([np.mean(values) for values in ACCURACY.values()])
    assert [row["eps"] for row in view.curves.ringed] == [1.0]
    ax = view.curves.plot().axes[0]
    assert ax.get_xscale() == "symlog"
    ring = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in ring] == [([1.0], [pytest.approx(0.78)])]


def test_resolutions_are_lines_of_one_panel():
    rows = [{**row, "resolution": pixels} for row in RUNS for pixels in (np.nan, 8.0)]
    view = by_radius(sweep(rows, FAMILY))
    assert list(view.curves.labels.values()) == ["own resolution", "8 px"]
    assert len({view.curves.panel(row) for row in view.curves.rows}) == 1


def test_the_best_radius_and_whether_the_seeds_tell():
    (row,) = best_radii(sweep(RUNS, FAMILY)).rows()
    gain = stats.ttest_rel(ACCURACY["b"], ACCURACY["natural"])
    lead = stats.ttest_rel(ACCURACY["b"], ACCURACY["a"]).confidence_interval(0.95)
    assert (row["eps"], row["source"], row["second_eps"], row["least_eps"], row["radii"]) == (1.0, "b", 0.25, 0.0, 4)
    assert row["gain"] == pytest.approx(0.07) and row["gain_low"] == pytest.approx(gain.confidence_interval(0.95).low)
    assert (row["lead_low"], row["lead_high"]) == pytest.approx((lead.low, lead.high))
    part = best_grid(sweep(RUNS, FAMILY), best_radii(sweep(RUNS, FAMILY)), "best_radius.csv")
    assert part.head == ["best", "mean", "gain", "second", "lead"]
    assert part.body[0][0] == "1" and part.body[0][2][0] == "+7.0" and part.body[0][3] == "0.25"


def test_the_natural_source_as_the_best_gains_nothing():
    rows = [*seeds([0.9, 0.91], source="natural"), *seeds([0.8, 0.81], source="a"), *seeds([0.7, 0.72], source="b")]
    (row,) = best_radii(sweep(rows, FAMILY)).rows()
    assert row["eps"] == 0 and np.isnan(row["gain"]) and row["lead"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("radius", "words"),
    [
        (0.0, "0"),
        (0.03137, "8/255"),
        (0.5 / 255, "0.5/255"),
        (0.01, "0.01"),
        (0.05, "0.05"),
        (1.0, "1"),
        (0.03, "0.03"),
    ],
)
def test_radii_as_they_are_written(radius, words):
    assert radius_words(radius) == words


def line(x, y):
    return [{"natural_accuracy": a, "parameters": 10**a, "mean": b} for a, b in zip(x, y, strict=True)]


def test_a_correlation_has_fishers_interval():
    x, y = [0.1, 0.4, 0.5, 0.9, 0.7], [0.2, 0.3, 0.1, 0.8, 0.9]
    found = correlate(line(x, y), "natural_accuracy")
    r = np.corrcoef(x, y)[0, 1]
    half = stats.norm.ppf(0.975) / np.sqrt(len(x) - 3)
    assert found["pearson"] == pytest.approx(r) and found["points"] == 5
    assert (found["low"], found["high"]) == pytest.approx((
        np.tanh(np.arctanh(r) - half),
        np.tanh(np.arctanh(r) + half),
    ))
    ranks = np.corrcoef(np.argsort(np.argsort(x)), np.argsort(np.argsort(y)))[0, 1]
    assert found["spearman"] == pytest.approx(ranks)
    assert correlate(line(x, y), "parameters")["pearson"] == pytest.approx(r)  # by its logarithm


def test_too_few_points_have_no_interval_and_fewer_no_correlation():
    three = correlate(line([0.1, 0.2, 0.4], [0.3, 0.2, 0.5]), "natural_accuracy")
    assert np.isfinite(three["pearson"]) and np.isnan(three["low"]) and np.isnan(three["high"])
    two = correlate(line([0.1, 0.2], [0.3, 0.2]), "natural_accuracy")
    assert np.isnan(two["pearson"]) and np.isnan(two["spearman"]) and two["points"] == 2
    assert np.isnan(correlate(line([0.5] * 5, [1, 2, 3, 4, 5]), "natural_accuracy")["pearson"])


def widths():
    of, rows = [], []
    for width, parameters in (("narrow", 2e4), ("small", 8e4), ("wide", 3.2e5)):
        for eps in (0.0, 1.0):
            name = f"{width} {eps:g}"
            of.append(
                {"source": name, "architecture": width, "parameters": parameters, "norm": "l2" if eps else "", "eps": eps,
                 "natural_accuracy": 0.8 - 0.1 * eps + 0.01 * np.log(parameters)}
            )  # fmt: skip
            rows += seeds([0.6 + 0.1 * eps + 0.02 * np.log(parameters), 0.61 + 0.1 * eps], source=name)
    return sweep(rows, of)


def test_correlations_over_all_sources_and_at_one_radius():
    view = SourceAccuracy(widths())
    rows = {(row["quantity"], row["sources"]): row for row in view.correlations().rows()}
    assert set(rows) == {(q, s) for q in ("natural_accuracy", "parameters") for s in ("all", "natural", "L2 1")}
    assert rows["natural_accuracy", "all"]["points"] == 6 and rows["natural_accuracy", "L2 1"]["points"] == 3
    assert rows["parameters", "natural"]["pearson"] == pytest.approx(1)
    assert rows["natural_accuracy", "all"]["pearson"] < 0.5  # across radii it is another matter


def test_the_figure_marks_and_names_every_source():
    fig = SourceAccuracy(widths()).plot()
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == ["accuracy", "parameters"]
    assert sorted(text.get_text() for text in panels[0].texts) == sorted(widths().sources)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["natural", "L2 1"]
    marks = [line for line in panels[1].lines if line.get_marker() not in ("None", "")]
    assert sorted({line.get_xdata()[0] for line in marks}) == [2e4, 8e4, 3.2e5] and len(marks) == 6


def test_two_sources_are_no_correlation():
    view = SourceAccuracy(sweep(RUNS[:6], FAMILY[:2]))
    assert not view and len(view.correlations()) == 0


RECIPES = {"": (0.90, 0.2, 10.0, "2"), "LwF 0.005": (0.88, 0.3, 40.0, "all"), "NEFT 0.4": (0.86, 0.4, 11.0, "2")}


def recipes(attacked=True):
    return [
        {"source": source, "recipe": recipe, "k": k, "seed": seed, "test_accuracy": a + 0.01 * seed,
         "robust_accuracy": b - 0.01 * seed if attacked else np.nan, "seconds": s}
        for source in ("robust", "fdm")
        for recipe, (a, b, s, k) in RECIPES.items()
        for seed in (0, 1)
    ]  # fmt: skip


def test_recipes_are_beside_each_other():
    view = Recipes(sweep(recipes(), [{"source": "robust"}, {"source": "fdm"}]))
    frame = view.frame()
    assert frame["source"].tolist() == ["robust"] * 3 + ["fdm"] * 3
    assert frame["recipe"].tolist() == ["plain", "LwF 0.005", "NEFT 0.4"] * 2
    assert frame["accuracy_mean"] == pytest.approx([0.905, 0.885, 0.865] * 2)
    assert frame["robust accuracy_mean"] == pytest.approx([0.195, 0.295, 0.395] * 2)
    assert frame["seconds_mean"].tolist() == [10, 40, 11] * 2
    part = view.grid("recipes.csv")
    assert part.head == ["recipe", "k", "source", "accuracy, %", "robust accuracy, %", "training, s"]
    assert (
        part.body[1][:3] == ["LwF 0.005", "all", "robust"]
        and part.body[1][3][0] == "88.5"
        and part.body[1][5][0] == "40.0"
    )


def test_recipes_are_drawn_against_each_other_where_an_attack_was_run():
    view = Recipes(sweep(recipes()))
    (ax,) = view.plot().axes
    marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    found = sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in marks)
    assert found == [pytest.approx(p) for p in [(0.865, 0.395)] * 2 + [(0.885, 0.295)] * 2 + [(0.905, 0.195)] * 2]
    assert not Recipes(sweep(recipes(attacked=False))).compared
    assert not Recipes(sweep(RUNS))
