import numpy as np
import pytest
import torch
from torch import nn
from upweight import UsageError
from upweight.models.data import load_data
from upweight.models.feature_settings import FeatureShiftSettings
from upweight.models.feature_shift import measure_shift
from upweight.models.lwf import feature_distance
from upweight.models.settings import DataSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSettings(data="digits"), (1, 8, 8)).test.subset(slice(0, 300))  # two batches


def mirrored(images):
    """The image itself and its mirror image, as numpy arrays."""
    x = images.images(slice(None)).numpy().astype(float)
    return x.reshape(len(x), -1), x[..., ::-1].reshape(len(x), -1)


def test_distances_are_those_of_numpy(digits):
    """A mirror has two outcomes: every image has either no distance, or that of its mirror image."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU()).double()
    weight, bias = net[1].weight.detach().numpy(), net[1].bias.detach().numpy()

    def features(x):
        return np.maximum(x @ weight.T + bias, 0)

    plain, other = (features(x) for x in mirrored(digits))
    found = measure_shift(nn.Sequential(Double(), net), digits, FeatureShiftSettings(shift=0, flip=True), CPU)
    moved = found.l2.numpy() > 0
    assert 100 < moved.sum() < 200  # 300 fair coins
    difference = (other - plain) * moved[:, None]
    np.testing.assert_allclose(found.l2, np.sqrt((difference**2).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(found.mean_abs, np.abs(difference).mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.l2_size, np.sqrt((plain**2).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(found.mean_abs_size, np.abs(plain).mean(1), rtol=1e-12)


class Double(nn.Module):
    def forward(self, x):
        return x.double()


def test_their_means_are_the_distances_of_learning_without_forgetting(digits):
    a, b = (torch.randn(300, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    turns = iter([a[:256], b[:256], a[256:], b[256:]])

    class Given(nn.Module):
        def forward(self, x):
            return next(turns)

    found = measure_shift(Given(), digits, FeatureShiftSettings(), CPU)
    for kind in ("l2", "mean_abs"):
        assert float(getattr(found, kind).mean()) == pytest.approx(float(feature_distance(b, a, kind)), rel=1e-6)


def test_the_change_is_that_of_the_seed(digits):
    def l2(seed):
        return measure_shift(nn.Flatten(), digits, FeatureShiftSettings(shift=1, rotate=10.0, seed=seed), CPU).l2

    assert torch.equal(l2(0), l2(0))
    assert not torch.equal(l2(0), l2(1))


def test_what_does_not_see_a_shift_has_no_distance(digits):
    blank = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the mean pixel: a mirror leaves it
    found = measure_shift(blank, digits, FeatureShiftSettings(shift=0, flip=True), CPU)
    assert found.l2.max() < 1e-6 < found.l2_size.min()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift": 0}, "give at least one of them"),
        ({"distance": "cosine"}, "distance is 'cosine'; choose one of l2, mean_abs"),
        ({"bins": 0}, "bins is 0"),
    ],
)
def test_settings_are_checked(options, words):
    with pytest.raises(UsageError, match=words):
        FeatureShiftSettings(**options)


def test_the_change_in_words():
    assert FeatureShiftSettings(shift=1, flip=True, rotate=7.5).change == (
        "shift by up to 1 pixel, mirror, rotation by up to 7.5 degrees"
    )
