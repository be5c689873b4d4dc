import numpy as np
import pytest
import torch
from torch import nn
from upweight import UsageError
from upweight.models.checkpoints import load_model
from upweight.models.data import load_data
from upweight.models.feature_settings import VisualizeSettings
from upweight.models.settings import DataSettings
from upweight.models.visualize import most_active, noise_images, penultimate, raise_units

SHAPE = (1, 3, 3)


@pytest.fixture(scope="module")
def robust():
    return load_model("robust").model


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSettings(data="digits"), (1, 28, 28)).test


def linear(seed=0, units=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, units)).double()


def test_in_a_ball_a_linear_unit_rises_along_its_weights():
    """The optimum is x + r w / |w| with the value w . x + b + r |w|, as long as no pixel meets its end."""
    net = linear()
    start = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)
    unit = torch.tensor([1, 3])
    found = raise_units(net, start, unit, VisualizeSettings(radius=0.2, step_size=0.07, steps=30))
    w = net[1].weight.detach()[unit]
    best = start + 0.2 * (w / w.norm(dim=1, keepdim=True)).view(2, *SHAPE)
    torch.testing.assert_close(found.image, best, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.after, found.before + 0.2 * w.norm(dim=1), rtol=1e-12, atol=0)


def test_without_a_ball_a_linear_unit_ends_in_a_corner_of_the_cube():
    net = linear(1)
    start = noise_images(2, SHAPE, 0).double()
    found = raise_units(net, start, torch.tensor([0, 2]), VisualizeSettings(steps=300, step_size=0.2))
    w = net[1].weight.detach()[[0, 2]]
    torch.testing.assert_close(found.image.flatten(1), (w > 0).double())
    torch.testing.assert_close(found.after, w.clamp_min(0).sum(1) + net[1].bias.detach()[[0, 2]])


@pytest.mark.parametrize("radius", [None, 1.5])
def test_a_robust_unit_rises_within_its_bounds(robust, radius):
    features, start = penultimate(robust).eval(), noise_images(6, (1, 28, 28), 3)
    unit = torch.arange(6)
    found = raise_units(features, start, unit, VisualizeSettings(steps=15, step_size=0.5, radius=radius))
    with torch.no_grad():  # before and after are what the network says of these images, and of no others
        said = [features(x)[torch.arange(6), unit] for x in (start, found.image)]
    torch.testing.assert_close(found.before, said[0])
    torch.testing.assert_close(found.after, said[1])
    assert (found.after >= found.before).all() and (found.after > found.before).any()
    assert found.image.min() >= 0 and found.image.max() <= 1
    moved = (found.image - start).flatten(1).norm(dim=1)
    assert moved.max() <= (radius or 28.0) + 1e-5
    assert radius is None or moved.max() > 0.9 * radius


def test_an_ascent_that_overshoots_keeps_the_best_image():
    class Narrow(nn.Module):
        """One unit that is highest where the pixels add up to 4.5, and falls off steeply."""

        def forward(self, x):
            return -(x.flatten(1).sum(1, keepdim=True) - 4.5).square()

    start = torch.full((1, *SHAPE), 0.5)  # at the top already
    found = raise_units(Narrow(), start + 0.01, torch.tensor([0]), VisualizeSettings(steps=5, step_size=2.0))
    assert found.after >= found.before and torch.equal(found.image, start + 0.01)


def test_one_image_does_not_depend_on_the_others(robust):
    features, start = penultimate(robust).eval(), noise_images(3, (1, 28, 28), 0)
    settings = VisualizeSettings(steps=3)
    together = raise_units(features, start, torch.tensor([1, 2, 3]), settings)
    alone = raise_units(features, start[1:2], torch.tensor([2]), settings)
    torch.testing.assert_close(together.image[1:2], alone.image, rtol=0, atol=1e-4)


def test_noise_is_that_of_its_seed():
    assert torch.equal(noise_images(3, SHAPE, 5)[:2], noise_images(2, SHAPE, 5))
    assert not torch.equal(noise_images(1, SHAPE, 5), noise_images(1, SHAPE, 6))
    assert noise_images(0, SHAPE, 0).shape == (0, *SHAPE)


def test_the_most_active_units_are_those_of_the_highest_mean(robust, digits):
    features, some = penultimate(robust).eval(), digits.subset(slice(0, 300))  # two batches
    found = most_active(features, some, 5, torch.device("cpu"))
    with torch.no_grad():
        means = features(some.images(slice(None))).numpy().mean(0)
    assert found.tolist() == np.argsort(-means)[:5].tolist()
    with pytest.raises(UsageError, match="49 units are asked for and the penultimate layer has 48"):
        most_active(features, some, 49, torch.device("cpu"))


def test_an_unknown_unit_is_refused():
    with pytest.raises(UsageError, match="no unit 4; the penultimate layer has 4, numbered 0 to 3"):
        raise_units(linear(), torch.zeros(1, *SHAPE).double(), torch.tensor([4]), VisualizeSettings())


def test_the_network_is_left_as_it_was(robust):
    before = {name: value.clone() for name, value in robust.state_dict().items()}
    raise_units(
        penultimate(robust).eval(), noise_images(1, (1, 28, 28), 0), torch.tensor([0]), VisualizeSettings(steps=2)
    )
    assert all(torch.equal(value, before[name]) for name, value in robust.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in robust.parameters())
    assert not robust.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": (-1,)}, "units is -1"),
        ({"starts": 0, "noise": 0}, "give something to begin with"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"radius": -1.0}, "radius is -1.0"),
        ({"most_active": 0}, "most_active is 0"),
    ],
)
def test_settings_are_checked(options, words):
    with pytest.raises(UsageError, match=words):
        VisualizeSettings(**options)
