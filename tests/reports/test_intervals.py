import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from upweight.reports import intervals
from upweight.reports.intervals import mean_difference, mean_over_seeds


def column(*values):
    return np.array(values, dtype=bool)[:, None]


def test_over_seeds_is_students_interval_of_the_mean():
    shares = {0: np.array([0.7]), 1: np.array([0.8]), 2: np.array([0.85])}
    found = mean_over_seeds(shares)
    low, high = stats.t.interval(0.95, 2, loc=np.mean([0.7, 0.8, 0.85]), scale=stats.sem([0.7, 0.8, 0.85]))
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), rel=1e-12)
    assert found.first()["seeds"] == 3 and found.basis == intervals.SEEDS


def test_seeds_count_alike_whatever_their_number_of_examples():
    found = mean_over_seeds({0: column(1, 1, 1, 0), 1: column(1, 0)})
    assert found.mean[0] == pytest.approx((0.75 + 0.5) / 2)


def test_one_seed_takes_wilsons_interval():
    found = mean_over_seeds({5: column(*[True] * 17, *[False] * 3)})
    assert (found.low[0], found.high[0]) == pytest.approx(proportion_confint(17, 20, method="wilson"), rel=1e-9)
    assert found.basis == intervals.WILSON


def test_a_recorded_share_of_one_seed_has_no_interval():
    found = mean_over_seeds({5: np.array([0.9])})
    assert found.mean[0] == pytest.approx(0.9) and np.isnan(found.low[0]) and found.basis == intervals.NONE


def test_differences_pair_seeds_and_leave_single_ones_out():
    ours = {0: np.array([0.9]), 1: np.array([0.7]), 2: np.array([0.5]), 9: np.array([0.0])}
    base = {0: np.array([0.8]), 1: np.array([0.62]), 2: np.array([0.39])}
    found = mean_difference(ours, base)
    test = stats.ttest_rel([0.9, 0.7, 0.5], [0.8, 0.62, 0.39]).confidence_interval(0.95)
    assert (found.low[0], found.high[0]) == pytest.approx((test.low, test.high), rel=1e-9)
    assert found.seeds == 3


def test_difference_of_one_seed_is_paired_over_examples():
    one, other = column(1, 1, 1, 0, 1, 0), column(1, 0, 1, 0, 0, 1)
    d = (one.astype(float) - other).ravel()
    half = stats.norm.ppf(0.975) * stats.sem(d)
    found = mean_difference({3: one}, {3: other})
    assert (found.low[0], found.high[0]) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-12)
    assert found.basis == intervals.QUERIES


def test_no_common_seed_gives_no_difference():
    assert mean_difference({1: np.array([0.5])}, {2: np.array([0.5])}) is None


def test_every_point_of_a_curve_has_its_own_interval():
    rng = np.random.default_rng(0)
    shares = {seed: rng.random((30, 4)) < [0.9, 0.5, 0.2, 0.0] for seed in range(3)}
    found = mean_over_seeds(shares)
    for r in range(4):
        alone = mean_over_seeds({seed: hits[:, r : r + 1] for seed, hits in shares.items()})
        assert (found.mean[r], found.low[r], found.high[r]) == pytest.approx((
            alone.mean[0],
            alone.low[0],
            alone.high[0],
        ))
