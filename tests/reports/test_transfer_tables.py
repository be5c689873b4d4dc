import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW
from sweeps import history, runs, seeds, sources, table
from upweight import UsageError
from upweight.reports.transfer_cells import Cell, pick
from upweight.reports.transfer_tables import Sweep

NATURAL, ROBUST = [0.60, 0.64, 0.71, 0.66], [0.70, 0.71, 0.83, 0.74]


def sweep(*rows, of=(), said=()):
    return Sweep(runs(*rows), history(*said), sources(*of))


def cell(**fields):
    return Cell(
        **{"data": "digits", "resolution": None, "recipe": "", "source": "natural", "k": "0", "n": 100} | fields
    )


def test_the_interval_of_a_mean_is_students():
    row = sweep(*seeds(NATURAL)).mean(cell(), "accuracy")
    low, high = DescrStatsW(NATURAL).tconfint_mean(alpha=0.05)
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx((np.mean(NATURAL), low, high, 4))


def test_differences_are_paired_by_seed_whatever_the_order_of_the_runs():
    rows = [*seeds(NATURAL), *seeds(ROBUST, source="robust")]
    mixed = [rows[i] for i in (3, 7, 0, 5, 6, 2, 1, 4)]
    (row,) = sweep(*mixed).from_first_source("accuracy")
    expected = stats.ttest_rel(ROBUST, NATURAL).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["source"], row["minus"], row["seeds"]) == ("robust", "natural", 4)
    unpaired = stats.ttest_ind(ROBUST, NATURAL).confidence_interval(0.95)
    assert row["high"] - row["low"] < 0.5 * (unpaired.high - unpaired.low)  # these seeds go together


def test_only_common_seeds_are_paired():
    rows = seeds(NATURAL)[:3] + seeds(ROBUST, source="robust")[1:]
    (row,) = sweep(*rows).from_first_source("accuracy")
    common = [ROBUST[1] - NATURAL[1], ROBUST[2] - NATURAL[2]]
    low, high = DescrStatsW(common).tconfint_mean()
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx((np.mean(common), low, high, 2))


def test_without_a_common_seed_or_a_counterpart_there_is_no_difference():
    rows = seeds(NATURAL)[:1] + seeds(ROBUST, source="robust")[1:] + seeds(ROBUST, source="robust", k="1")
    assert sweep(*rows).from_first_source("accuracy") == []


def test_one_seed_has_no_interval():
    made = sweep(*seeds([0.9]), *seeds([0.8], source="robust"))
    (difference,) = made.from_first_source("accuracy")
    for row in (made.mean(cell(), "accuracy"), difference):
        assert row["seeds"] == 1 and np.isnan(row["low"]) and np.isnan(row["high"]) and np.isfinite(row["mean"])


def test_runs_that_were_not_attacked_are_left_out_of_robust_accuracy():
    rows = [{"seed": seed, "robust_accuracy": value} for seed, value in enumerate([0.3, np.nan, 0.5])]
    made = sweep(*rows, {"k": "1"})
    row = made.mean(cell(), "robust accuracy")
    assert (row["mean"], row["seeds"]) == (pytest.approx(0.4), 2)
    assert made.mean(cell(k="1"), "robust accuracy") is None and made.has("robust accuracy")
    assert not sweep({}).has("robust accuracy")


def test_cells_keep_recipes_and_resolutions_apart():
    rows = [{"recipe": recipe, "resolution": pixels} for recipe in ("", "LwF 0.005") for pixels in (np.nan, 8.0)]
    made = sweep(*rows)
    assert len(made.cells) == 4 and made.varying == {"recipe", "resolution"}
    assert (
        made.words(cell(recipe="LwF 0.005", resolution=8.0), ["data", "resolution", "recipe", "k"]) == "8 px, LwF 0.005"
    )
    assert made.words(cell(), ["resolution", "recipe"]) == "own resolution, plain"


def test_the_order_of_the_report():
    rows = [
        {"k": k, "n": n, "source": s}
        for k in ("all", "10", "9", "0")
        for n in (1600, 200)
        for s in ("b", "natural", "a")
    ]
    made = sweep(*rows, of=[{"source": "a"}, {"source": "b"}, {"source": "natural"}])
    assert made.values("k") == ["0", "9", "10", "all"]
    assert made.values("n") == [200, 1600]
    assert made.sources == ("natural", "a", "b")
    assert [c[3:] for c in made.cells][:4] == [
        ("natural", "0", 200),
        ("a", "0", 200),
        ("b", "0", 200),
        ("natural", "0", 1600),
    ]


def test_a_source_that_no_run_has_is_left_out():
    assert sweep({"source": "a"}, of=[{"source": "natural"}, {"source": "a"}]).sources == ("a",)


def test_twins_are_refused_unless_they_are_one_run_made_twice():
    with pytest.raises(UsageError, match="Runs run-0 and run-1 have the same data, recipe"):
        sweep({"test_accuracy": 0.9}, {"test_accuracy": 0.8})
    assert len(sweep({"seconds": 1.0}, {"seconds": 2.0}).cells) == 1


def test_tables_that_lack_what_is_needed_are_refused():
    with pytest.raises(UsageError, match="no run to report"):
        sweep()
    with pytest.raises(UsageError, match="no column recipe"):
        Sweep(runs({}).select([n for n in runs({}).columns if n != "recipe"]), history(), sources())


def test_epochs_are_means_over_the_seeds_that_have_them():
    said = [{"seed": s, "epoch": e, "test_accuracy": 0.5 + 0.1 * s + 0.01 * e} for s in (0, 1) for e in (1, 2)]
    said += [{"seed": 0, "epoch": 3, "test_accuracy": 0.7}, {"seed": 0, "epoch": 4, "test_accuracy": np.nan}]
    said += [{"k": "all", "epoch": 1}]  # of no run
    rows = sweep({"seed": 0}, {"seed": 1}, said=said).epochs()
    assert [(row["epoch"], row["seeds"]) for row in rows] == [(1, 2), (2, 2), (3, 1)]
    assert [row["mean"] for row in rows] == pytest.approx([0.56, 0.57, 0.7])


def test_a_history_without_epochs_is_no_history():
    assert Sweep(runs({}), table([], {}), sources()).epochs() == []


def test_estimates_hold_every_measure_and_difference():
    frame = sweep(*seeds(NATURAL), *seeds(ROBUST, source="robust")).estimates()
    found = [(row["measure"], row["source"], row["minus"]) for row in frame]
    for measure in ("accuracy", "seconds", "train accuracy"):
        for pair in (("natural", ""), ("robust", ""), ("robust", "natural")):
            assert (measure, *pair) in found
    assert len(found) == 9


@pytest.mark.parametrize(("most", "expected"), [(1, [9]), (2, [0, 9]), (4, [0, 3, 6, 9]), (20, list(range(10)))])
def test_some_of_many_are_spread(most, expected):
    assert pick(list(range(10)), most) == expected
