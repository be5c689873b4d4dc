"""The attack stays in its ball, goes where it should, and leaves the model alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from upweight.models.attacks import attacked, evaluating, pgd, project, random_start
from upweight.models.settings import PGDSettings
from upweight.models.zoo import build


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def lengths(delta, norm):
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0]),
    steps=st.integers(0, 4),
    step_size=st.sampled_from([None, 1e-3, 5.0]),
    start=st.booleans(),
    corner=st.sampled_from(["inside", "black", "white"]),
    flat=st.booleans(),
    seed=st.integers(0, 5),
)
def test_stays_in_the_ball_and_in_the_range_of_pixels(norm, eps, steps, step_size, start, corner, flat, seed):
    x = torch.rand(3, 2, 4, 5, generator=draw(seed))
    x = x if corner == "inside" else torch.full_like(x, 0.0 if corner == "black" else 1.0)
    weight = torch.zeros(40) if flat else torch.randn(40, generator=draw(seed))
    how = PGDSettings(norm=norm, eps=eps, steps=steps, step_size=step_size, random_start=start)
    moved = pgd(lambda z: (z.flatten(1) @ weight).sin(), x, how, draw(seed))
    assert moved.isfinite().all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (lengths(moved - x, norm) <= eps * (1 + 1e-5) + 1e-6).all()  # float32 rounding of x + delta


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_keeps_the_inside_and_puts_the_outside_on_the_sphere(norm):
    how = PGDSettings(norm=norm, eps=0.5)
    inside = random_start(torch.zeros(6, 1, 3, 3), how, draw())
    assert torch.equal(project(inside, how), inside)
    outside = torch.randn(6, 1, 3, 3, generator=draw(), dtype=torch.float64) * 10
    landed = project(outside, how)
    torch.testing.assert_close(lengths(landed, norm), torch.full((6,), 0.5, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(project(landed, how), landed, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_loss_is_raised_to_its_maximum_in_the_ball(norm):
    weight = torch.randn(9, generator=draw(1), dtype=torch.float64)
    x = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    how = PGDSettings(norm=norm, eps=0.1, steps=60, step_size=0.05)
    moved = pgd(lambda z: z.flatten(1) @ weight, x, how, draw())
    best = 0.1 * (weight.abs().sum() if norm == "linf" else weight.norm())
    torch.testing.assert_close((moved - x).flatten(1) @ weight, best.expand(2), rtol=1e-6, atol=0)


def test_l2_start_is_uniform_in_the_ball():
    how = PGDSettings(eps=2.0)
    start = random_start(torch.zeros(4000, 1, 1, 3, dtype=torch.float64), how, draw())
    volume = (lengths(start, "l2") / 2) ** 3  # uniform in [0, 1] when the points are uniform in the ball
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    cumulative = (volume[:, None] <= grid).double().mean(0)
    assert (cumulative - grid).abs().max() < 0.04  # five standard deviations of a proportion of 4,000
    assert start.mean(0).abs().max() < 0.08  # likewise, of a coordinate


def test_linf_start_is_uniform_in_the_cube():
    start = random_start(torch.zeros(4000, 1, 1, 2), PGDSettings(norm="linf", eps=0.3), draw())
    assert start.abs().max() <= 0.3
    assert start.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.03)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")  # captum's own
def test_without_random_start_agrees_with_captum():
    robust = pytest.importorskip("captum.robust", reason="captum is an optional extra")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, y = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    how = PGDSettings(norm="linf", eps=0.08, steps=6, step_size=0.03, random_start=False)
    theirs = robust.PGD(model, nn.CrossEntropyLoss(reduction="none"), lower_bound=0.0, upper_bound=1.0).perturb(
        x, radius=0.08, step_size=0.03, step_num=6, target=y, targeted=False, random_start=False, norm="Linf"
    )
    torch.testing.assert_close(attacked(model, x, y, how, draw()), theirs.detach(), rtol=0, atol=1e-6)


def test_more_loss_than_before_and_the_same_for_the_same_seed():
    model, x, y = small_case()
    how = PGDSettings(eps=1.0, steps=5)
    moved = attacked(model, x, y, how, draw(1))
    assert torch.equal(moved, attacked(model, x, y, how, draw(1)))
    assert not torch.equal(moved, attacked(model, x, y, how, draw(2)))
    with evaluating(model), torch.no_grad():
        assert functional.cross_entropy(model(moved), y) > functional.cross_entropy(model(x), y)


def test_model_and_images_are_left_as_they_were_found():
    model, x, y = small_case()
    model.train()
    model.net.stage2.eval()
    model.net.head.weight.requires_grad_(False)
    model.net.head.bias.grad = torch.ones(10)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = x.clone()
    attacked(model, x, y, PGDSettings(steps=2), draw())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert not model.net.head.weight.requires_grad
    assert torch.equal(model.net.head.bias.grad, torch.ones(10))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "net.head.bias")
    assert torch.equal(x, pixels)
    assert not x.requires_grad


def test_mode_comes_back_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert model[0].training


def test_attack_works_where_gradients_are_off():
    model, x, y = small_case()
    how = PGDSettings(steps=2)
    with torch.no_grad():
        moved = attacked(model, x, y, how, draw())
    assert torch.equal(moved, attacked(model, x, y, how, draw()))


def small_case():
    torch.manual_seed(0)
    model = build("small_resnet", num_classes=10, mean=(0.3,), std=(0.3,))
    return model, torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])
