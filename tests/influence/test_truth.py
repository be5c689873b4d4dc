"""Ground truth in memory: parts of a train set, and what became of the queries."""

import numpy as np
import pytest
from upweight import ShapeError, Truth, UsageError
from upweight.influence.truth import random_parts, require_classes, without_each


def truth(J=3, r=2, n=4, m=5):
    rng = np.random.default_rng(0)
    return Truth(
        kept=rng.random((J, n)) < 0.5,
        seed=np.arange(J * r).reshape(J, r),
        loss=rng.random((J, r, m)),
        margin=rng.standard_normal((J, r, m)),
        train_index=np.arange(n),
        query_index=np.arange(m),
    )


def test_random_parts_depend_on_the_seed_and_their_place_alone():
    labels = np.arange(20) % 2
    few, more = random_parts(labels, 3, 0.5, seed=4), random_parts(labels, 8, 0.5, seed=4)
    np.testing.assert_array_equal(few, more[:3])
    assert (more.sum(1) == 10).all() and len(np.unique(more, axis=0)) == 8
    assert not np.array_equal(more, random_parts(labels, 8, 0.5, seed=5))
    assert (random_parts(labels, 2, 0.26).sum(1) == 5).all()


def test_every_example_is_drawn_as_often_as_any_other():
    drawn = random_parts(np.zeros(10, dtype=np.int64), 2000, 0.3, seed=1)
    assert np.abs(drawn.mean(0) - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 2000)  # four standard errors
    together = np.cov(drawn.T)[np.triu_indices(10, 1)]  # without replacement: one more here is one less elsewhere
    assert abs(together.mean() + 0.3 * 0.7 / 9) < 2e-3


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, float("nan"), 0.01, 0.99])
def test_a_share_that_leaves_nothing_or_everything_is_refused(alpha):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        random_parts(np.arange(10) % 2, 3, alpha)


def test_no_parts_are_refused():
    with pytest.raises(UsageError, match="give at least 1"):
        random_parts(np.arange(10) % 2, 0, 0.5)


def test_a_part_that_loses_a_class_is_refused_by_its_number():
    labels = np.array([0] * 9 + [1])
    with pytest.raises(UsageError, match=r"Subset \d+ of 40 has no example of class 1, and \d+ lack it"):
        random_parts(labels, 40, 0.5)
    kept = np.ones((3, 10), dtype=bool)
    require_classes(kept, labels)
    kept[2, 9] = False
    with pytest.raises(UsageError, match="Subset 2 of 3 has no example of class 1, and 1 lack it"):
        require_classes(kept, labels)


def test_without_each_has_the_whole_and_then_one_less():
    kept = without_each(5, [3, 0])
    assert kept.astype(int).tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 1], [0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("examples", "words"), [([5], "between 0 and 4"), ([-1], "between 0 and 4"), ([1, 1], "twice")]
)
def test_examples_that_cannot_be_left_out_are_refused(examples, words):
    with pytest.raises(UsageError, match=words):
        without_each(5, examples)


def test_means_pass_over_what_diverged():
    found = truth()
    found.loss[1, 0, 2] = np.nan
    found.loss[2, :] = np.inf
    assert found.diverged.tolist() == [[False, False], [True, False], [True, True]]
    for output in ("loss", "margin"):
        values, means = found.values(output), found.mean(output)
        np.testing.assert_allclose(means[0], (values[0, 0] + values[0, 1]) / 2)
        np.testing.assert_array_equal(means[1], values[1, 1])
        assert np.isnan(means[2]).all()


@pytest.mark.untyped
def test_another_output_is_refused():
    with pytest.raises(UsageError, match="'loss' or 'margin'"):
        truth().values("accuracy")


def test_some_parts_are_a_truth_too():
    found = truth(J=4)
    for rows in ([2, 0], np.array([True, False, True, False])):
        some = found.parts(rows)
        np.testing.assert_array_equal(some.loss, found.loss[rows])
        np.testing.assert_array_equal(some.kept, found.kept[rows])
        assert some.query_index is found.query_index
    found.kept[1] = True
    assert found.is_whole.tolist() == [row.all() for row in found.kept]


@pytest.mark.untyped
def test_arrays_that_do_not_fit_each_other_are_refused():
    found = truth()
    with pytest.raises(ShapeError, match="margin of a ground truth"):
        Truth(
            kept=found.kept,
            seed=found.seed,
            loss=found.loss,
            margin=found.margin[:2],
            train_index=found.train_index,
            query_index=found.query_index,
        )
