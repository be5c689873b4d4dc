"""The report of an evaluation: its tables come back as CSV and JSON, and every figure shows what its table holds."""

import csv
import json

import numpy as np
import pytest
from upweight.influence.tables import Table
from upweight.reports.evaluation import Curve, Evaluated, write_evaluation
from upweight.reports.evaluation_figures import draw_curve, draw_methods, draw_removal
from upweight.reports.summary import evaluation_summary


def methods():
    return Table(
        {
            "method": np.array(["LinearHead, damping 0.01", "gradient product", "nearest images"]),
            "kind": np.array(["influence", "influence", "baseline"]),
            "lds": np.array([0.61, 0.2, -0.01]),
            "lds_low": np.array([0.55, 0.1, -0.1]),
            "lds_high": np.array([0.66, 0.3, 0.08]),
            "loo_pearson": np.array([0.99, 0.5, 0.1]),
            "loo_low": np.array([0.98, 0.4, 0.0]),
            "loo_high": np.array([0.995, 0.6, 0.2]),
            "loo_spearman": np.array([0.98, 0.5, 0.1]),
            "match_1": np.array([0.9, 1.0, 0.7]),
            "match_5": np.array([0.8, 1.0, 0.6]),
        },
        "Every way to score",
    )


def curve():
    x = np.array([0.0, 1e-4, 1e-2, 1.0])
    columns = {
        "kind": np.array(["damping"] * 4),
        "value": 2 * x,
        "relative": x,
        "lds": np.array([0.1, 0.3, 0.6, 0.4]),
        "low": np.array([0.0, 0.2, 0.5, 0.3]),
        "high": np.array([0.2, 0.4, 0.7, 0.5]),
    }
    return Curve(table=Table(columns, "LDS against damping"), given=1 / 300, recommended=1e-2, sentence="Take 0.02.")


def removal():
    columns = {
        "query": np.repeat([3, 7], 4),
        "chosen": np.tile(["highest scores", "highest scores", "at random", "at random"], 2),
        "size": np.tile([5, 10], 4),
        "actual": np.array([0.5, 1.0, 0.0, 0.1, 0.3, 0.6, 0.0, -0.1]),
        "summed": np.array([0.4, 0.8, 0.0, 0.0, 0.2, 0.4, 0.0, 0.0]),
        "interaction": np.full(8, np.nan),
    }
    return Table(columns, "Rise of the loss")


@pytest.fixture
def found():
    groups = Table(
        {
            "predicted_by": np.array(["summed scores"]),
            "pearson": np.array([0.97]),
            "spearman": np.array([0.9]),
            "slope": np.array([1.4]),
            "sets": np.array([8]),
        },
        "Measured against predicted",
    )
    wrong = Table(
        {
            "method": np.array(["LinearHead", "loss"]),
            "auc": np.array([0.9, 0.8]),
            "auc_low": np.array([0.85, 0.7]),
            "auc_high": np.array([0.95, 0.9]),
            "found_at_10": np.array([0.7, 0.5]),
        },
        "Wrong labels",
    )
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(20, 5))
    return Evaluated(
        title="natural-k0: scores against retraining",
        facts=[("Run", "natural-k0"), ("Queries", "797")],
        methods=methods(),
        ceiling=0.87,
        curve=curve(),
        scatter=(predicted, 1.3 * predicted, "Pearson 1.000"),
        removal=removal(),
        groups=groups,
        mislabel=wrong,
        refits=Table({"refits": np.array(["random parts"]), "parts": np.array([100])}, "Refits"),
        conclusions=["The first is ahead."],
        settings={"lds": 100},
    )


def test_page_tables_and_figures_are_written(found, tmp_path):
    stats = write_evaluation(found, tmp_path)
    assert stats == json.loads((tmp_path / "stats.json").read_text())
    assert stats["settings"] == {"lds": 100} and stats["ceiling"] == found.ceiling
    for table in stats["tables"].values():
        rows = list(csv.DictReader((tmp_path / table["file"]).read_text().splitlines()))
        assert len(rows) == table["rows"]
    assert set(stats["tables"]) == {"methods", "damping_curve", "removal", "groups", "mislabel", "refits"}
    page = (tmp_path / "index.html").read_text()
    for words in (
        "The first is ahead.",
        "Take 0.02.",
        "LinearHead, damping 0.01",
        "natural-k0",
        "Refits",
        "0.550 to 0.660",
    ):
        assert words in page
    for figure in stats["figures"]:
        assert (tmp_path / figure["file"]).stat().st_size == figure["bytes"]
        assert figure["file"] in page


def test_what_was_not_asked_for_has_no_section(found, tmp_path):
    bare = Evaluated(title="bare", facts=[], methods=methods().select(["method", "kind", "match_1", "match_5"]))
    stats = write_evaluation(bare, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert set(stats["tables"]) == {"methods", "refits"} and stats["figures"] == [] and stats["ceiling"] is None
    for anchor in ("damping", "leave-one-out", "sets", "mislabel"):
        assert f'id="{anchor}"' not in page


def test_methods_stand_in_the_order_of_their_scores():
    axes = draw_methods(methods(), ceiling=0.87).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "nearest images", "gradient product", "LinearHead, damping 0.01",
    ]  # fmt: skip
    points = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert points == [-0.01, 0.2, 0.61]


def test_the_curve_leaves_out_what_a_logarithm_cannot_show_and_marks_its_dampings():
    held = curve()
    axes = draw_curve(held.table, 0.87, held.given, held.recommended).axes[0]
    lines = {line.get_label(): np.asarray(line.get_xdata()) for line in axes.lines}
    assert lines["damping"].tolist() == [1e-4, 1e-2, 1.0]
    assert lines["as scored"][0] == held.given and lines["recommended"][0] == held.recommended


def test_removal_curves_are_means_over_queries_with_the_best_prediction_there_is():
    axes = draw_removal(removal()).axes[0]
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines["highest scores"] == [0.4, 0.8]
    assert [0.3, 0.6] in [np.round(y, 12).tolist() for y in lines.values()]  # dashed: without interaction, the sums


def test_the_terminal_shows_numbers_with_their_intervals(found, tmp_path):
    tables = evaluation_summary(write_evaluation(found, tmp_path))
    text = "\n".join(table.to_text() for table in tables)
    assert "0.610 [0.550, 0.660]" in text and "0.990 [0.980, 0.995]" in text and "0.900 [0.850, 0.950]" in text
    assert "lds_low" not in text and "loo low" not in text
