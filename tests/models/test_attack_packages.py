"""Our attacks against those of two packages, where they are installed: the same points, to the last digit.

Neither is among the dev packages: one pins requests to a version of 2021, the other imports names that scipy deprecates.
`pip install --no-deps torchattacks foolbox` and `pip install eagerpy GitPython requests` bring both.
"""

import warnings

import pytest
import torch
from torch import nn
from upweight.models.attacks import attacked, random_start
from upweight.models.settings import PGDSettings

EPS, STRIDE, STEPS = 0.3125, 0.125, 12  # powers of two and sums of few: their product with a gradient is exact


def package(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed; it is optional")


def draw():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def case():
    """A convolutional network with batch-norm, and eight images: the mean over eight is an exact division."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 5)
    )
    return model.double().eval(), torch.rand(8, 3, 6, 6, dtype=torch.float64), torch.arange(8) % 5


def how(norm, **changes):
    return PGDSettings(norm=norm, eps=EPS, steps=STEPS, step_size=STRIDE, **changes)


def test_linf_is_that_of_torchattacks_bit_by_bit(case):
    model, x, y = case
    theirs = package("torchattacks").PGD(model, eps=EPS, alpha=STRIDE, steps=STEPS, random_start=False)(x, y)
    assert not torch.equal(theirs, x)
    assert torch.equal(attacked(model, x, y, how("linf", random_start=False), draw()), theirs)


def test_l2_is_that_of_torchattacks_to_rounding(case):
    model, x, y = case
    theirs = package("torchattacks").PGDL2(
        model, eps=EPS, alpha=STRIDE, steps=STEPS, random_start=False, eps_for_division=0
    )(x, y)
    assert not torch.equal(theirs, x)
    # pixels are of order 1, and norms are summed in another order: a few units of the last of 16 digits
    torch.testing.assert_close(attacked(model, x, y, how("l2", random_start=False), draw()), theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("start", [False, True])
def test_both_are_those_of_foolbox(case, norm, start):
    model, x, y = case
    foolbox = package("foolbox")
    settings = how(norm, random_start=start)

    class Ours(foolbox.attacks.L2PGD if norm == "l2" else foolbox.attacks.LinfPGD):
        """Their ascent from our start: two packages draw from two streams."""

        def get_random_start(self, x0, epsilon):
            return type(x0)(x0.raw + random_start(x0.raw, settings, draw()))

    attack = Ours(abs_stepsize=STRIDE, steps=STEPS, random_start=start)
    points, _, fooled = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=EPS)
    ours = attacked(model, x, y, settings, draw())
    assert not torch.equal(ours, x)
    torch.testing.assert_close(ours, points, rtol=0, atol=1e-15 if norm == "l2" else 0)
    assert torch.equal(model(ours).argmax(1) != y, fooled)
