import h5py
import numpy as np
import pytest
from upweight.reports import blocks
from upweight.reports.blocks import Axis, average


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.standard_normal((37, 23)), rng.integers(0, 4, 37), rng.integers(0, 3, 23)


def test_no_averaging_below_screen_size(problem):
    matrix, rows, columns = problem
    found = average(matrix, rows, columns, 100, on_itself=False)
    expected = matrix[np.argsort(rows, kind="stable")][:, np.argsort(columns, kind="stable")]
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


@pytest.mark.parametrize("pixels", [1, 5, 11])
def test_blocks_are_means_and_hold_one_class(problem, pixels):
    matrix, rows, columns = problem
    found = average(matrix, rows, columns, pixels, on_itself=False)
    for i in range(len(found.rows.starts)):
        for j in range(len(found.columns.starts)):
            inside = np.ix_(found.rows.block == i, found.columns.block == j)
            assert found.values[i, j] == pytest.approx(matrix[inside].mean(), rel=1e-10)
    for axis, labels in ((found.rows, rows), (found.columns, columns)):
        for block in range(len(axis.starts)):
            assert len(set(labels[axis.block == block])) == 1
        assert axis.sizes.sum() == len(labels)
        for first, last in zip(axis.bounds[:-1], axis.bounds[1:], strict=True):
            assert np.ptp(axis.sizes[first:last]) <= 1  # of one class: alike to within one example


def test_class_bounds_name_the_right_blocks():
    labels = np.array([2, 0, 2, 5, 0, 2, 2])
    axis = Axis.of(labels, 4)
    for c, first, last in zip(axis.classes, axis.bounds[:-1], axis.bounds[1:], strict=True):
        assert set(axis.block[labels == c]) == set(range(first, last))


def test_class_means_and_norm(problem):
    matrix, rows, columns = problem
    found = average(matrix, rows, columns, 6, on_itself=False)
    for i, a in enumerate(found.rows.classes):
        for j, b in enumerate(found.columns.classes):
            assert found.class_means[i, j] == pytest.approx(matrix[np.ix_(rows == a, columns == b)].mean(), rel=1e-10)
    assert found.frobenius == pytest.approx(np.linalg.norm(matrix))
    assert found.rms == pytest.approx(np.sqrt(np.mean(matrix**2)))


def test_self_is_in_the_blocks_and_not_in_the_class_means():
    labels = np.array([0, 1, 0, 1, 0, 2])
    matrix = np.arange(36.0).reshape(6, 6)
    found = average(matrix, labels, labels, 100, on_itself=True)
    own = np.eye(6, dtype=bool)
    for c in (0, 1):
        inside = (labels[:, None] == c) & (labels == c) & ~own
        assert found.class_means[c, c] == pytest.approx(matrix[inside].mean())
    assert found.class_means[0, 1] == pytest.approx(matrix[np.ix_(labels == 0, labels == 1)].mean())
    assert np.isnan(found.class_means[2, 2])  # the only pair of class 2 is an example with itself
    order = np.argsort(labels, kind="stable")
    np.testing.assert_allclose(np.diag(found.values), np.diag(matrix)[order])


def test_a_stored_matrix_is_read_in_slices(problem, tmp_path, monkeypatch):
    matrix, rows, columns = problem
    whole = average(matrix, rows, columns, 7, on_itself=False)
    monkeypatch.setattr(blocks, "CHUNK_BYTES", 8 * 23 * 5)  # five rows at a time; 37 is no multiple
    with h5py.File(tmp_path / "m.h5", "w") as file:
        stored = file.create_dataset("scores", data=matrix)
        sliced = average(stored, rows, columns, 7, on_itself=False)
    np.testing.assert_allclose(sliced.values, whole.values, rtol=1e-10)
    np.testing.assert_allclose(sliced.class_means, whole.class_means, rtol=1e-10)
    assert sliced.frobenius == pytest.approx(whole.frobenius)
