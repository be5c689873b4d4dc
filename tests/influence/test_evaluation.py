"""LDS, deletions and mislabel detection against loops, slow bootstraps and known answers."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from upweight import Scores, UsageError, lds, loo, mislabel
from upweight.influence.errors import ShapeError
from upweight.influence.evaluation import lds_difference, lds_of_sums
from upweight.influence.examples import Examples
from upweight.influence.removal import removed_sums, subset_removal
from upweight.influence.truth import Truth, random_parts, without_each

N, M = 30, 7


def some_truth(J: int = 24, r: int = 2, noise: float = 0.5, seed: int = 0, **meta) -> tuple[np.ndarray, Truth]:
    """Scores, and losses that follow them: a linear datamodel with noise; the first part has everything."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(M, N))
    kept = np.concatenate([np.ones((1, N), bool), random_parts(np.zeros(N, int), J, 0.5, seed)])
    signal = -(kept @ scores.T)
    loss = signal[:, None] + noise * signal.std() * rng.normal(size=(J + 1, r, M))
    index = np.arange(N) * 3 + 5, np.arange(M) * 2 + 1
    seeds = np.arange((J + 1) * r).reshape(J + 1, r)
    return scores, Truth(
        kept=kept, seed=seeds, loss=loss, margin=-2 * loss, train_index=index[0], query_index=index[1], meta=meta
    )


def diverge(truth: Truth, *where: tuple[int, int]) -> Truth:
    loss, margin = truth.loss.copy(), truth.margin.copy()
    for j, repeat in where:
        loss[j, repeat, 0] = margin[j, repeat, 0] = np.nan
    return Truth(
        kept=truth.kept,
        seed=truth.seed,
        loss=loss,
        margin=margin,
        train_index=truth.train_index,
        query_index=truth.query_index,
        meta=truth.meta,
    )


def as_scores(matrix: np.ndarray, queries: np.ndarray, train: np.ndarray) -> Scores:
    def side(index: np.ndarray) -> Examples:
        return Examples(index=index, label=0 * index, prediction=0 * index, loss=np.zeros(len(index)))

    return Scores(matrix, side(queries), side(train))


def lds_by_loops(scores: np.ndarray, truth: Truth) -> list[float]:
    """Query by query: scipy's Spearman between sums over the kept examples and minus the mean loss."""
    found = []
    for t in range(scores.shape[0]):
        sums, outcomes = [], []
        for j in range(len(truth.kept)):
            if truth.kept[j].all():
                continue
            losses = [truth.loss[j, a, t] for a in range(truth.loss.shape[1]) if np.isfinite(truth.loss[j, a]).all()]
            if losses:
                sums.append(math.fsum(scores[t, i] for i in range(N) if truth.kept[j, i]))
                outcomes.append(-np.mean(losses))
        found.append(spearmanr(sums, outcomes).statistic)
    return found


def test_lds_is_the_mean_of_spearman_correlations():
    scores, truth = some_truth()
    truth = diverge(truth, (3, 0), (5, 0), (5, 1))
    found = lds(scores, truth)
    np.testing.assert_allclose(found.per_query, lds_by_loops(scores, truth), atol=1e-12)
    assert found.mean == pytest.approx(np.mean(found.per_query))
    assert (found.parts, found.excluded, found.diverged, found.constant) == (23, 1, 3, 0)
    assert found.low < found.mean < found.high
    assert found.mean > 0.5, "positive scores of kept examples mean lower losses"


def test_margins_predict_like_minus_losses():
    scores, truth = some_truth()
    assert lds(scores, truth, output="margin", resamples=0).mean == pytest.approx(lds(scores, truth, resamples=0).mean)
    assert lds(-scores, truth, resamples=0).mean == pytest.approx(-lds(scores, truth, resamples=0).mean)


def test_ties_have_average_ranks():
    scores, truth = some_truth()
    rounded = np.sign(scores)  # sums are small whole numbers: many are equal
    np.testing.assert_allclose(lds(rounded, truth, resamples=0).per_query, lds_by_loops(rounded, truth), atol=1e-12)


def test_a_constant_query_counts_as_nothing():
    scores, truth = some_truth()
    scores[2] = 0
    truth.loss[:, :, 4] = 1.5
    found = lds(scores, truth)
    assert found.per_query[2] == found.per_query[4] == 0
    assert found.constant == 2
    assert found.mean == pytest.approx(found.per_query.sum() / M)


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_interval_is_that_of_a_slow_bootstrap(noise):
    """Parts and queries drawn again one by one, with every rank computed anew: the same interval up to chance."""
    scores, truth = some_truth(J=60, noise=noise)
    found = lds(scores, truth)
    rng = np.random.default_rng(1)
    sums, outcomes = truth.kept[1:] @ scores.T, -truth.loss[1:].mean(1)
    means = []
    for _ in range(600):
        rows, columns = rng.integers(0, 60, 60), rng.integers(0, M, M)
        ranks = np.concatenate([rankdata(sums[rows], axis=0), rankdata(outcomes[rows], axis=0)], axis=1)
        each = np.corrcoef(ranks.T)[np.arange(M), np.arange(M) + M]
        means.append(each[columns].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    width = high - low
    assert abs(found.low - low) < 0.15 * width and abs(found.high - high) < 0.15 * width


def test_draws_are_those_of_the_seed():
    scores, truth = some_truth()
    one, same, other = lds(scores, truth), lds(scores, truth), lds(scores, truth, seed=1)
    assert (one.low, one.high) == (same.low, same.high) != (other.low, other.high)


def test_difference_is_paired():
    """Two methods that agree but for a little noise: their difference is known far better than either."""
    scores, truth = some_truth(J=60, noise=2.0)
    close = scores + 0.05 * np.random.default_rng(2).normal(size=scores.shape)
    found, alone = lds_difference(scores, close, truth), lds(scores, truth)
    assert found.mean == pytest.approx(alone.mean - lds(close, truth).mean)
    assert found.low < found.mean < found.high
    assert found.high - found.low < (alone.high - alone.low) / 3
    worse = lds_difference(scores, np.roll(scores, 1, axis=1), truth)
    assert worse.low > 0.1


def test_ceiling_is_what_the_true_scores_reach():
    """Known answer: the generating scores themselves, against 40 queries, reach the ceiling of Spearman and Brown."""
    rng = np.random.default_rng(0)
    J, m = 200, 40
    kept = random_parts(np.zeros(N, int), J, 0.5)
    scores = rng.normal(size=(m, N))
    signal = -(kept @ scores.T)
    for r in (2, 4):
        loss = signal[:, None] + 1.2 * signal.std() * rng.normal(size=(J, r, m))
        ids = np.arange(N), np.arange(m)
        truth = Truth(
            kept=kept, seed=np.zeros((J, r), int), loss=loss, margin=-loss, train_index=ids[0], query_index=ids[1]
        )
        found = lds(scores, truth, resamples=0)
        by_hand = np.mean([spearmanr(loss[:, 0, t], loss[:, 1, t]).statistic for t in range(m)])
        if r == 2:
            assert found.repeat_correlation == pytest.approx(by_hand)
            assert found.ceiling == pytest.approx((2 * by_hand / (1 + by_hand)) ** 0.5)
        assert found.mean == pytest.approx(found.ceiling, abs=0.02)


def test_ceiling_of_one_repeat_is_unknown_unless_it_is_exact():
    scores, truth = some_truth(r=1)
    found = lds(scores, truth, resamples=0)
    assert math.isnan(found.ceiling) and math.isnan(found.repeat_correlation)
    scores, truth = some_truth(r=1, exact=True)
    assert lds(scores, truth, resamples=0).ceiling == 1


def test_fewer_than_ten_parts_have_no_interval():
    scores, truth = some_truth(J=10)
    assert math.isfinite(lds(scores, truth).low)
    truth = diverge(truth, (2, 0), (2, 1))
    with pytest.raises(UsageError, match=r"9 parts.*\(every training of 1 more diverged\).*10 at least.*resamples=0"):
        lds(scores, truth)
    found = lds(scores, truth, resamples=0)
    assert found.parts == 9 and math.isnan(found.low)
    with pytest.raises(UsageError, match=r"1 parts.*2 at least"):
        lds(scores, truth.parts([0, 1]), resamples=0)
    with pytest.raises(UsageError, match="resamples must be at least 0"):
        lds(scores, truth, resamples=-1)


def test_scores_of_more_examples_are_matched_by_id():
    scores, truth = some_truth()
    rng = np.random.default_rng(3)
    queries, train = rng.permutation(M * 2 + 3), rng.permutation(N * 3 + 9)
    matrix = rng.normal(size=(len(queries), len(train)))
    row = {int(t): a for a, t in enumerate(queries)}
    column = {int(i): a for a, i in enumerate(train)}
    for t, query in enumerate(truth.query_index):
        for i, example in enumerate(truth.train_index):
            matrix[row[int(query)], column[int(example)]] = scores[t, i]
    found = lds(as_scores(matrix, queries, train), truth)
    np.testing.assert_allclose(found.per_query, lds(scores, truth).per_query, atol=1e-12)


def test_scores_that_do_not_fit_are_refused():
    scores, truth = some_truth()
    with pytest.raises(ShapeError, match=r"scores are \[7, 29\].*7 queries and 30 train examples, so \[7, 30\]"):
        lds(scores[:, 1:], truth)
    other = as_scores(scores, truth.query_index, truth.train_index + 3)
    with pytest.raises(UsageError, match="lack 1 of the 30 train examples of the ground truth, id 5 for one"):
        lds(other, truth)
    other = as_scores(scores, truth.query_index + 1, truth.train_index)
    with pytest.raises(UsageError, match="lack 7 of the 7 queries"):
        lds(other, truth)
    with pytest.raises(UsageError, match="NaN or infinite"):
        lds(np.where(scores > 2, np.nan, scores), truth)


def test_predictions_of_any_kind_are_ordered():
    scores, truth = some_truth()
    sums = truth.kept @ scores.T
    assert lds_of_sums(np.exp(sums), truth).mean == pytest.approx(lds(scores, truth).mean), "only the order counts"


# --------------------------------------------------------------------------------------------------------- removals


def deletions(left_out: list[int], r: int = 2, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, Truth]:
    """Losses that rise by twice the score over n, and repeats whose common level says nothing."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(M, N))
    kept = without_each(N, left_out)
    level = 10 * rng.normal(size=(1, r, M))
    change = 2 * (~kept @ scores.T) / N
    loss = level + change[:, None] + noise * change.std() * rng.normal(size=(len(kept), r, M))
    return scores, Truth(
        kept=kept,
        seed=np.zeros((len(kept), r), int),
        loss=loss,
        margin=-loss,
        train_index=np.arange(N),
        query_index=np.arange(M),
    )


def test_single_deletions_are_compared_repeat_by_repeat():
    scores, truth = deletions(list(range(4, 18)))
    found = loo(scores, truth)
    assert found.pearson == pytest.approx(1) and found.spearman == pytest.approx(1)
    assert found.slope == pytest.approx(2) and found.repeat_correlation == pytest.approx(1)
    assert found.slope_interval == pytest.approx((2, 2))
    np.testing.assert_allclose(found.predicted, scores[:, 4:18].T)
    np.testing.assert_allclose(found.actual, 2 * scores[:, 4:18].T, atol=1e-9)
    np.testing.assert_array_equal(found.row, np.arange(1, 15))
    assert loo(scores, truth, output="margin").slope == pytest.approx(2)


def test_deletion_measures_are_those_of_scipy():
    scores, truth = deletions(list(range(20)), noise=2.0)
    truth = diverge(truth, (0, 1), (3, 0), (7, 0), (7, 1))  # of the whole set only the first repeat is left
    found = loo(scores, truth)
    rows = [j for j in range(1, 21) if j not in (3, 7)]
    x = np.array([scores[:, j - 1] for j in rows])
    y = np.array([N * (truth.loss[j, 0] - truth.loss[0, 0]) for j in rows])
    np.testing.assert_allclose(found.actual, y)
    np.testing.assert_array_equal(found.row, rows)
    assert found.excluded == 2
    assert found.pearson == pytest.approx(pearsonr(x.ravel(), y.ravel()).statistic)
    assert found.spearman == pytest.approx(spearmanr(x.ravel(), y.ravel()).statistic)
    assert found.slope == pytest.approx((x * y).sum() / (x * x).sum())
    np.testing.assert_allclose(found.pearson_per_query, [pearsonr(x[:, t], y[:, t]).statistic for t in range(M)])
    np.testing.assert_allclose(found.spearman_per_query, [spearmanr(x[:, t], y[:, t]).statistic for t in range(M)])
    assert math.isnan(found.repeat_correlation), "no deletion has two repeats that can be paired"
    table = found.table()
    np.testing.assert_allclose(table["pearson"], [pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    np.testing.assert_array_equal(table["removed"], 1)


def test_deletion_intervals_draw_the_examples_again():
    scores, truth = deletions(list(range(25)), noise=2.0)
    found = loo(scores, truth)
    x, y = found.predicted, found.actual
    rng = np.random.default_rng(1)
    pearson, slope = [], []
    for _ in range(800):
        rows = rng.integers(0, 25, 25)
        pearson.append(pearsonr(x[rows].ravel(), y[rows].ravel()).statistic)
        slope.append((x[rows] * y[rows]).sum() / (x[rows] ** 2).sum())
    for got, draws in ((found.pearson_interval, pearson), (found.slope_interval, slope)):
        low, high = np.quantile(draws, [0.025, 0.975])
        np.testing.assert_allclose(got, (low, high), atol=0.12 * (high - low))
    both = [N * (truth.loss[1:, a] - truth.loss[0, a]) for a in (0, 1)]
    assert found.repeat_correlation == pytest.approx(pearsonr(both[0].ravel(), both[1].ravel()).statistic)


def test_groups_are_compared_with_their_sums():
    scores, truth = some_truth(noise=0.0)
    found = subset_removal(removed_sums(scores, truth), truth)
    assert found.pearson == pytest.approx(1)
    assert found.slope == pytest.approx(N), "these losses move by the sums themselves, not by their n-th part"
    np.testing.assert_array_equal(found.size, 15)
    assert len(found.table()) == 24


def test_deletions_need_the_whole_and_single_gaps():
    scores, truth = some_truth()
    with pytest.raises(UsageError, match="No part of this ground truth lacks exactly one example"):
        loo(scores, truth)
    scores, truth = deletions(list(range(12)))
    with pytest.raises(UsageError, match="no training on the whole train set"):
        loo(scores, truth.parts(np.arange(1, 13)))
    with pytest.raises(UsageError, match="resamples=0"):
        loo(scores, truth.parts(np.arange(6)))
    assert math.isnan(loo(scores, truth.parts(np.arange(6)), resamples=0).pearson_interval[0])


# -------------------------------------------------------------------------------------------------------- mislabels


def test_mislabel_measures():
    rng = np.random.default_rng(0)
    flipped = rng.random(300) < 0.1
    values = rng.normal(size=300) + 1.5 * flipped
    found = mislabel(values, flipped)
    above = [(v > w) + (v == w) / 2 for v in values[flipped] for w in values[~flipped]]
    assert found.auc == pytest.approx(np.mean(above))
    top = np.argsort(-values)[:30]
    assert found.found_at_10 == pytest.approx(flipped[top].sum() / flipped.sum())
    assert (found.flipped, found.examples) == (flipped.sum(), 300)


def test_mislabel_interval_is_that_of_a_bootstrap():
    rng = np.random.default_rng(1)
    flipped = np.arange(400) < 60
    values = np.round(rng.normal(size=400) + flipped, 1)  # with ties
    found = mislabel(values, flipped)
    draws = []
    for _ in range(2000):
        a, b = rng.choice(values[:60], 60), rng.choice(values[60:], 340)
        draws.append((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.06)


def test_mislabel_counts_ties_by_chance():
    flipped = np.arange(100) < 20
    assert mislabel(np.zeros(100), flipped).found_at_10 == pytest.approx(0.1)
    assert mislabel(flipped.astype(float), flipped).found_at_10 == pytest.approx(0.5)
    perfect = mislabel(flipped.astype(float), flipped)
    assert (perfect.auc, perfect.low, perfect.high) == (1, 1, 1)


def test_mislabel_refuses_what_it_cannot_order():
    with pytest.raises(ShapeError, match=r"\[3\].*\[4\]"):
        mislabel(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(UsageError, match="0 of 4 labels are flipped"):
        mislabel(np.zeros(4), np.zeros(4, bool))
    with pytest.raises(UsageError, match="NaN"):
        mislabel([np.nan, 1.0], [True, False])
