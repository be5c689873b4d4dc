"""The ways in which people hold their data."""

import numpy as np
import pytest
import torch
from cases import BY_NAME
from methods import assert_scores
from numpy.testing import assert_array_equal
from torch.utils.data import Dataset, Subset, TensorDataset
from upweight import GradientDot, ShapeError, attribute
from upweight.influence.examples import Examples


class Lazy(Dataset):
    """One item at a time, labels as plain or numpy whole numbers; counts what is asked of it."""

    def __init__(self, X, y, kind):
        self.X, self.y, self.kind = X, y, kind
        self.asked = []

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        if not 0 <= i < len(self):  # an index that is out of range must not be relied on
            raise IndexError(i)
        self.asked.append(i)
        x = self.X[i].numpy() if self.kind is np.int64 else self.X[i]
        return x, self.kind(self.y[i])


KINDS = {
    "python": lambda X, y: Lazy(X, y, int),
    "numpy": lambda X, y: Lazy(X, y, np.int64),
    "tensor": lambda X, y: Lazy(X, y, torch.tensor),
    "list": lambda X, y: list(zip(X, y.tolist(), strict=True)),
    "TensorDataset": TensorDataset,
    "Subset": lambda X, y: Subset(TensorDataset(X.flip(0), y.flip(0)), list(range(len(y)))[::-1]),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [7, 256])
def test_every_kind_of_data_set_gives_the_same(kind, batch_size):
    problem = BY_NAME["head"].build()
    want = attribute(problem.model, problem.train, problem.queries, batch_size=batch_size)
    sides = [KINDS[kind](*side) for side in (problem.train, problem.queries)]
    got = attribute(problem.model, *sides, batch_size=batch_size)
    assert_scores(got.matrix, want.matrix, 1e-9)
    assert_array_equal(got.train.label, want.train.label)


def test_a_data_set_is_not_read_more_often_than_needed():
    """Reading may be dear: a few times at most, and for a head the images are not needed again."""
    problem = BY_NAME["image-head"].build()
    train = Lazy(*problem.train, int)
    attribute(problem.model, train, problem.queries)
    assert max(np.bincount(train.asked)) <= 2  # the few of the batch check, and the features


def test_images_of_whole_numbers_are_not_turned_into_something_else():
    """A model that takes bytes gets bytes."""

    class Bytes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x):
            assert x.dtype == torch.uint8
            return self.head(x.float() / 255)

    X = torch.randint(256, (12, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scores = attribute(Bytes(), (X, torch.arange(12) % 2), parameters="all", curvature=GradientDot())
    assert np.isfinite(scores.matrix).all()


def test_examples_of_uneven_length_are_refused():
    with pytest.raises(ShapeError, match="loss has 2 rows for 3 examples"):
        Examples(index=np.arange(3), label=np.zeros(3, int), prediction=np.zeros(3, int), loss=np.zeros(2))
