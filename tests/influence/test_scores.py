"""Rankings and class-match rates, by loops; ties, cuts and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binomtest
from upweight import LinearHead, Scores, UsageError, attribute
from upweight.influence.examples import Examples

BASELINES = ("residual", "cosine", "gradient", "random_head")


def examples(labels, *, first=0, classes=3, seed=0, predictions=None):
    """Examples with these labels and made-up logits and features."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels, dtype=np.int64)
    z = rng.normal(size=(len(labels), classes))
    residual = np.array([reference.residual(row, y) for row, y in zip(z, labels, strict=True)]).reshape(-1, classes)
    return Examples(
        index=np.arange(first, first + len(labels)),
        label=labels,
        prediction=z.argmax(1) if predictions is None else np.asarray(predictions, dtype=np.int64),
        loss=np.array([reference.loss(row, y) for row, y in zip(z, labels, strict=True)]),
        residual=residual,
        features=rng.normal(size=(len(labels), 4)),
    )


def random_scores(seed=0, *, m=7, n=23, on_itself=False, values=None):
    rng = np.random.default_rng(seed)
    train = examples(rng.integers(0, 3, n), first=100, seed=seed)
    queries = train if on_itself else examples(rng.integers(0, 3, m), seed=seed + 1)
    shape = (len(queries), n)
    matrix = rng.normal(size=shape) if values is None else rng.choice(values, size=shape)
    return Scores(matrix, queries, train, on_itself=on_itself)


@pytest.fixture(params=[False, True], ids=["queries", "on-itself"])
def scores(request):
    return random_scores(on_itself=request.param)


class TestRankings:
    @pytest.mark.parametrize("k", [1, 5, 23])
    def test_top_and_bottom_are_those_of_a_sort(self, scores, k):
        for query in range(len(scores.queries)):
            skip = query if scores.on_itself else None
            for table, largest in ((scores.top(query, k), True), (scores.bottom(query, k), False)):
                order = reference.ranking(scores.matrix[query], skip, largest)[:k]
                assert_array_equal(table["rank"], np.arange(1, len(order) + 1))
                assert_array_equal(table["train_id"], scores.train.index[order])  # ids, which here start at 100
                assert_array_equal(table["score"], scores.matrix[query, order])
                assert_array_equal(table["label"], scores.train.label[order])

    @given(st.integers(0, 10_000), st.booleans(), st.integers(1, 12))
    def test_equal_scores_keep_the_order_of_the_train_set(self, seed, on_itself, k):
        scores = random_scores(seed, n=9, on_itself=on_itself, values=[-1.0, 0.0, 0.0, 2.0])
        for query in range(len(scores.queries)):
            skip = query if on_itself else None
            for table, largest in ((scores.top(query, k), True), (scores.bottom(query, k), False)):
                order = reference.ranking(scores.matrix[query], skip, largest)[:k]
                assert_array_equal(table["train_id"], scores.train.index[order])

    def test_more_neighbours_than_there_are_gives_what_there_is(self, scores):
        n = len(scores.train) - scores.on_itself
        assert len(scores.top(0, k=1000)) == len(scores.bottom(0, k=1000)) == n
        assert_array_equal(scores.top(0, k=1000)["train_id"], scores.bottom(0, k=1000)["train_id"][::-1])

    def test_five_by_default(self, scores):
        assert len(scores.top(2)) == len(scores.bottom(2)) == 5

    @pytest.mark.parametrize("query", [7, -1, 10_000])
    def test_query_out_of_range_is_refused_with_the_range(self, query):
        scores = random_scores()
        for ranking in (scores.top, scores.bottom):
            with pytest.raises(UsageError, match=rf"Query {query} is out of range.*7 queries, 0 to 6"):
                ranking(query)

    @pytest.mark.parametrize("k", [0, -3])
    def test_no_neighbours_at_all_is_refused(self, scores, k):
        with pytest.raises(UsageError, match="k must be at least 1"):
            scores.top(0, k)
        with pytest.raises(UsageError, match="k must be at least 1"):
            scores.class_match(k)

    def test_one_train_example_on_itself_has_no_neighbour(self):
        only = random_scores(n=1, on_itself=True)
        assert len(only.top(0)) == 0


def loops(scores, matrix, k, label):
    wanted = scores.queries.label if label == "true" else scores.queries.prediction
    return reference.match_table(matrix, wanted, scores.train.label, k, scores.on_itself)


def baseline_matrices(scores, target):
    """The simpler scores [m, n] by loops."""
    queries, train = scores.queries, scores.train
    rows = []
    for residual, label, at in zip(queries.residual, queries.label, target, strict=True):
        moved = residual.copy()  # softmax minus the one-hot of `at` instead of `label`
        moved[label] += 1
        moved[at] -= 1
        rows.append(moved if at != label else residual)
    R = np.array(rows)
    ones_q, ones_t = np.ones((len(queries), 1)), np.ones((len(train), 1))
    phi_q, phi_t = np.hstack([queries.features, ones_q]), np.hstack([train.features, ones_t])
    gradients_q = np.array([np.outer(r, phi).ravel() for r, phi in zip(R, phi_q, strict=True)])
    gradients_t = np.array([np.outer(r, phi).ravel() for r, phi in zip(train.residual, phi_t, strict=True)])
    return {
        "residual": reference.dots(R, train.residual),
        "cosine": reference.cosines(queries.features, train.features),
        "gradient": reference.dots(gradients_q, gradients_t),
    }


class TestClassMatch:
    @pytest.mark.parametrize("label", ["true", "predicted"])
    def test_rates_are_those_of_the_loops(self, scores, label):
        table = scores.class_match(k=8, label=label)
        hits = loops(scores, scores.matrix, 8, label)
        assert_array_equal(table["rank"], np.arange(1, 9))
        assert_allclose(table["rate"], reference.rates_per_rank(hits))
        assert_allclose(table["cumulative"], reference.cumulative_rates(hits))

    @pytest.mark.parametrize("label", ["true", "predicted"])
    def test_intervals_are_those_of_scipy(self, scores, label):
        table = scores.class_match(k=8, label=label)
        m = len(scores.queries)
        for row in table.rows():
            interval = binomtest(round(row["rate"] * m), m).proportion_ci(method="wilson")
            assert_allclose([row["low"], row["high"]], [interval.low, interval.high], atol=1e-12)
            assert 0 <= row["cumulative_low"] <= row["cumulative"] <= row["cumulative_high"] <= 1

    @pytest.mark.parametrize("label", ["true", "predicted"])
    def test_chance_is_the_rate_of_a_random_order(self, scores, label):
        wanted = scores.queries.label if label == "true" else scores.queries.prediction
        shares = []
        for t, y in enumerate(wanted):
            others = [i for i in range(len(scores.train)) if not (scores.on_itself and i == t)]
            shares.append(sum(scores.train.label[i] == y for i in others) / len(others))
        assert_allclose(scores.class_match(k=3, label=label)["chance"], np.mean(shares))

    @pytest.mark.parametrize("label", ["true", "predicted"])
    def test_baselines_are_those_of_the_loops(self, scores, label):
        table = scores.class_match(k=8, label=label)
        for name, matrix in baseline_matrices(scores, scores.queries.label).items():
            hits = loops(scores, matrix, 8, label)
            assert_allclose(table[name], reference.rates_per_rank(hits), err_msg=name)
            assert_allclose(table[f"{name}_cumulative"], reference.cumulative_rates(hits), err_msg=name)

    def test_baselines_follow_the_label_of_the_query_loss(self):
        scores = random_scores()
        scores.meta["query_label"] = "predicted"
        assert_array_equal(scores.target(), scores.queries.prediction)
        table = scores.class_match(k=8)
        for name, matrix in baseline_matrices(scores, scores.queries.prediction).items():
            assert_allclose(table[name], reference.rates_per_rank(loops(scores, matrix, 8, "true")), err_msg=name)

    def test_random_head_is_the_influence_of_a_head_that_learned_nothing(self, scores):
        """The same features and labels under torch's default initialisation, and the package's own exact head."""
        F, C = scores.train.features.shape[1], 3
        draws = torch.rand(C, F + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        head = torch.nn.Linear(F, C).double()
        with torch.no_grad():
            weights = (2 * draws - 1) * F**-0.5  # uniform on +- 1 / sqrt(F), as nn.Linear draws them
            head.weight.copy_(weights[:, :F])
            head.bias.copy_(weights[:, F])
        sides = [
            (torch.from_numpy(side.features), torch.from_numpy(side.label)) for side in (scores.train, scores.queries)
        ]
        matrix = attribute(head, *sides, curvature=LinearHead()).matrix
        assert_allclose(
            scores.class_match(k=8)["random_head"], reference.rates_per_rank(loops(scores, matrix, 8, "true"))
        )

    def test_intervals_of_baselines_enclose_their_rates(self, scores):
        table = scores.class_match(k=8)
        for name in BASELINES:
            assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()

    def test_more_ranks_than_train_examples_are_cut(self, scores):
        assert len(scores.class_match(k=1000)) == len(scores.train) - scores.on_itself

    def test_the_last_cumulative_rate_is_chance(self, scores):
        """All of the train set is a neighbour in the end, whatever the order: a check with no free choice."""
        table = scores.class_match(k=1000)
        assert_allclose(table["cumulative"][-1], table["chance"][-1])
        for name in BASELINES:
            assert_allclose(table[f"{name}_cumulative"][-1], table["chance"][-1])

    @pytest.mark.untyped
    def test_unknown_label_is_refused(self, scores):
        with pytest.raises(UsageError, match="'true' or 'predicted'"):
            scores.class_match(label="guessed")

    @given(st.integers(0, 10_000), st.booleans(), st.integers(1, 12))
    def test_ties_do_not_depend_on_how_many_ranks_are_asked(self, seed, on_itself, k):
        """A short list is found by partition and a long one by sorting; both must break ties alike."""
        scores = random_scores(seed, m=5, n=60, on_itself=on_itself, values=[-1.0, 0.0, 0.0, 2.0])
        hits = loops(scores, scores.matrix, k, "true")
        assert_allclose(scores.class_match(k)["rate"], reference.rates_per_rank(hits))

    def test_without_residuals_and_features_there_are_no_baselines(self):
        scores = random_scores()
        bare = [replace(side, residual=None, features=None) for side in (scores.queries, scores.train)]
        table = Scores(scores.matrix, *bare).class_match(k=4)
        assert not set(BASELINES) & set(table.columns)
        assert_allclose(table["rate"], scores.class_match(k=4)["rate"])


class TestAtLeast:
    @pytest.mark.parametrize(("hits", "of"), [(3, 5), (1, 1), (5, 5), (2, 9)])
    @pytest.mark.parametrize("label", ["true", "predicted"])
    def test_rates_and_intervals_are_those_of_the_loops(self, scores, hits, of, label):
        table = scores.at_least(hits, of, label)
        m = len(scores.queries)
        matrices = {"influence": scores.matrix, **baseline_matrices(scores, scores.queries.label)}
        rows = {row["method"]: row for row in table.rows()}
        assert next(iter(rows)) == "influence" and set(rows) == {"influence", *BASELINES}
        for name, matrix in matrices.items():
            rate = reference.at_least_rate(loops(scores, matrix, of, label), hits, of)
            interval = binomtest(round(rate * m), m).proportion_ci(method="wilson")
            row = rows[name]
            assert_allclose([row["rate"], row["low"], row["high"]], [rate, interval.low, interval.high], atol=1e-12)

    @pytest.mark.parametrize(("hits", "of"), [(0, 5), (6, 5)])
    def test_impossible_counts_are_refused(self, scores, hits, of):
        with pytest.raises(UsageError, match="between 1 and of"):
            scores.at_least(hits, of)

    def test_three_measures_worked_by_hand(self):
        """Query 0 (class 0) meets classes 0 0 0 1 2, query 1 (class 1) meets 1 2 0 0 0."""
        matrix = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 5.0, 4.0]])
        scores = Scores(matrix, examples([0, 1]), examples([0, 0, 0, 1, 2]))
        table = scores.class_match(k=5)
        assert_allclose(table["rate"], [1.0, 0.5, 0.5, 0.0, 0.0])
        assert_allclose(table["cumulative"], [1.0, 0.75, 2 / 3, 0.5, 0.4])
        assert_allclose(scores.at_least(3, 5)["rate"][0], 0.5)
        assert_allclose(table["chance"], 0.4)  # 3 of 5 for class 0, 1 of 5 for class 1


class TestObject:
    def test_matrix_that_does_not_fit_is_refused(self):
        scores = random_scores()
        with pytest.raises(UsageError, match=r"\[23, 7\] does not fit 7 queries and 23"):
            Scores(scores.matrix.T, scores.queries, scores.train)

    def test_self_influence_is_the_diagonal(self):
        itself = random_scores(on_itself=True)
        assert_array_equal(itself.self_influence(), np.diag(itself.matrix))

    def test_self_influence_without_train_scores_says_what_to_ask_for(self):
        with pytest.raises(UsageError, match="train_scores=True"):
            random_scores().self_influence()

    def test_rankings_leave_the_matrix_alone(self, scores):
        before = scores.matrix.copy()
        scores.top(0)
        scores.bottom(0)
        scores.class_match(4)
        scores.at_least()
        assert_array_equal(scores.matrix, before)

    def test_it_introduces_itself(self, scores):
        assert f"{len(scores.queries)} queries x 23 train examples" in repr(scores)
