"""The attack stays in its ball, goes where it should, and leaves the model alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from upweight.models.accuracy import EVALUATION_IMAGES, accuracies, natural_accuracy, robust_accuracy
from upweight.models.attacks import attack, attacked, evaluating, pgd, project, random_start
from upweight.models.images import ArrayPixels, ImageSet
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


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.sampled_from([0.0, 1e-9, 0.3, 1e6]),
    size=st.sampled_from([0.0, 1e-12, 0.2, 1.0, 1e8]),
    same=st.booleans(),
    seed=st.integers(0, 50),
)
def test_projection_is_the_nearest_point_of_the_ball(norm, eps, size, same, seed):
    """No point of the ball lies behind the landing: (delta - P delta) . (p - P delta) <= 0, which is what nearest means."""
    how, draws = PGDSettings(norm=norm, eps=eps), draw(seed)
    delta = size * torch.randn(4, 2, 3, 3, generator=draws, dtype=torch.float64)
    delta = (
        delta[:, :1, :1, :1].expand(4, 2, 3, 3).clone() if same else delta
    )  # every coordinate alike: a corner of the cube
    landed = project(delta, how)
    assert (lengths(landed, norm) <= eps * (1 + 1e-12)).all()
    assert torch.equal(landed.sign(), delta.sign() if eps else torch.zeros_like(delta))
    torch.testing.assert_close(project(landed, how), landed, rtol=1e-12, atol=0)
    other = project(10 * eps * torch.randn(4, 2, 3, 3, generator=draws, dtype=torch.float64), how)
    for point in (other, -landed, torch.zeros_like(landed)):
        behind = ((delta - landed) * (point - landed)).flatten(1).sum(1)
        assert (behind <= 1e-9 * (1 + delta.abs().max()) * (eps + 1e-300)).all()
    moved = project(delta + 0.1 * size, how)  # two points come no further apart
    assert ((moved - landed).flatten(1).norm(dim=1) <= 0.1 * size * 18**0.5 * (1 + 1e-9) + 1e-15).all()


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


def curved_case(seed, images=6):
    """Four classes on 12 pixels in float64, with a loss that is not convex; a third of the labels is wrong from the start."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    x = torch.rand(images, 3, 2, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::3] = (y[::3] + 1) % 4
    return model, x, y


def losses(model, x, y):
    with torch.no_grad():
        return functional.cross_entropy(model(x), y, reduction="none")


def one_by_one(model, x, y, how, seed):
    """Every point that counts, image by image: no batch, no masks, the gradient of one image's loss."""
    draw_from, counted = draw(seed), [[] if how.keep == "last" else [image] for image in x]
    for restart in range(how.restarts):
        start = x
        if how.random_start or restart:
            start = (x + random_start(x, how, draw_from)).clamp(0, 1)
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            here = start[i]
            path = [here]
            for _ in range(how.steps):
                here = here.detach().requires_grad_()
                (grad,) = torch.autograd.grad(functional.cross_entropy(model(here[None])[0], label), here)
                step = grad.sign() if how.norm == "linf" else grad / grad.norm()
                delta = here.detach() + how.stride * step - image
                if how.norm == "linf":
                    delta = delta.clamp(-how.eps, how.eps)
                elif delta.norm() > how.eps:
                    delta = delta * how.eps / delta.norm()
                here = (image + delta).clamp(0, 1)
                path.append(here)
            counted[i] += path[-1:] if how.keep == "last" else path
    return counted


HOWS = {
    "norm": st.sampled_from(["l2", "linf"]),
    "eps": st.sampled_from([0.02, 0.1, 0.4]),
    "steps": st.integers(0, 4),
    "step_size": st.sampled_from([0.02, 0.15]),
    "random_start": st.booleans(),
    "restarts": st.integers(1, 3),
    "keep": st.sampled_from(["last", "loss", "success"]),
}
hows = st.builds(PGDSettings, **HOWS)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(how=hows, seed=st.integers(0, 30))
def test_attack_agrees_with_one_image_at_a_time(how, seed):
    model, x, y = curved_case(seed)
    found = attack(model, x, y, how, draw(seed))
    for i, points in enumerate(one_by_one(model, x, y, how, seed)):
        points = torch.stack(points)
        loss, wrong = losses(model, points, y[i].expand(len(points))), model(points).argmax(1) != y[i]
        chosen = int(wrong.nonzero()[0]) if how.keep == "success" and wrong.any() else int(loss.argmax())
        # a step is at most 0.15 long, and rounding (1e-16) grows by the curvature of a few such steps
        torch.testing.assert_close(found.images[i], points[chosen], rtol=0, atol=1e-9)
        torch.testing.assert_close(found.loss[i], loss[chosen], rtol=0, atol=1e-9)
        assert found.fooled[i] == wrong.any()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(how=hows, seed=st.integers(0, 30), early=st.booleans())
def test_every_kind_of_attack_keeps_to_the_ball_and_tells_the_truth(how, seed, early):
    model, x, y = curved_case(seed)
    found = attack(model, x, y, replace(how, stop_early=early), draw(seed))
    assert (lengths(found.images - x, how.norm) <= how.eps * (1 + 1e-12)).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    torch.testing.assert_close(found.loss, losses(model, found.images, y), rtol=0, atol=1e-12)
    wrong = model(found.images).argmax(1) != y
    assert not (wrong & ~found.fooled).any()
    if how.keep == "success" or (how.keep, how.restarts) == ("last", 1):
        assert torch.equal(wrong, found.fooled)
    if how.keep == "loss":
        assert (found.loss >= losses(model, x, y)).all()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(how=hows, seed=st.integers(0, 30))
def test_restarts_lower_no_loss_and_spare_nobody(how, seed):
    model, x, y = curved_case(seed)
    once, more = (attack(model, x, y, replace(how, restarts=count), draw(seed)) for count in (1, 3))
    assert (more.fooled | ~once.fooled).all()
    if how.keep != "success":  # the first success is taken, whatever its loss is
        assert (more.loss >= once.loss).all()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(how=hows, seed=st.integers(0, 30), more=st.integers(1, 4))
def test_more_steps_of_the_best_point_lower_no_loss(how, seed, more):
    model, x, y = curved_case(seed)
    how = replace(how, keep="loss", restarts=1)
    short, long = (attack(model, x, y, replace(how, steps=how.steps + extra), draw(seed)) for extra in (0, more))
    assert (long.loss >= short.loss).all()
    assert (long.fooled | ~short.fooled).all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(how=hows, seed=st.integers(0, 30))
def test_stopping_early_changes_no_success_and_no_other_image(how, seed):
    model, x, y = curved_case(seed)
    whole, early = (attack(model, x, y, replace(how, stop_early=stop), draw(seed)) for stop in (False, True))
    assert torch.equal(early.fooled, whole.fooled)
    same = slice(None) if how.keep == "success" else ~whole.fooled
    torch.testing.assert_close(early.images[same], whole.images[same], rtol=0, atol=1e-9)


def test_stopping_early_saves_passes_and_leaves_the_draws_alone():
    model, x, y = curved_case(0)
    seen = []
    model.register_forward_hook(lambda _m, inputs, _out: seen.append(len(inputs[0])))
    how = PGDSettings(eps=0.4, steps=5, restarts=2, keep="success")
    whole_draw, early_draw = draw(0), draw(0)
    attack(model, x, y, how, whole_draw)
    assert seen == [6] * (1 + 2 * 6)
    seen.clear()
    fooled = attack(model, x, y, replace(how, stop_early=True), early_draw).fooled
    assert fooled.any()
    assert sum(seen) < 6 * (1 + 2 * 6) / 2
    assert torch.equal(whole_draw.get_state(), early_draw.get_state())


def test_attacks_of_training_take_restarts_too():
    model, x, y = curved_case(4)
    how = PGDSettings(eps=0.1, steps=2, restarts=3, keep="loss")
    assert torch.equal(attacked(model, x, y, how, draw()), attack(model, x, y, how, draw()).images)
    plain = PGDSettings(eps=0.1, steps=2)
    assert torch.equal(attacked(model, x, y, plain, draw()), attack(model, x, y, plain, draw()).images)


def test_images_that_are_wrong_from_the_start_count_as_fooled():
    model, x, y = curved_case(2)
    wrong = model(x).argmax(1) != y
    assert wrong.any()
    assert not wrong.all()
    found = attack(model, x, y, PGDSettings(eps=0.0, steps=2, keep="success"), draw())
    assert torch.equal(found.fooled, wrong)


def image_set(x, y):
    return ImageSet(pixels=ArrayPixels(x), labels=y, index=torch.arange(len(y)), input_shape=tuple(x.shape[1:]))


def test_rates_come_with_their_counts():
    model, x, y = curved_case(1, images=1200)
    model, x = model.float(), x.float()
    images, how, cpu = image_set(x, y), PGDSettings(eps=0.1, steps=2, restarts=2, keep="success"), torch.device("cpu")
    said = accuracies(model, images, how, 0, cpu)
    assert (said["natural_images"], said["pgd_images"], said["pgd_restarts"], said["pgd_keep"]) == (
        1200,
        EVALUATION_IMAGES,
        2,
        "success",
    )
    assert said["natural"] == pytest.approx(np.mean((model(x).argmax(1) == y).numpy()))
    first = images.subset(slice(0, 1000))
    assert said["pgd"] == robust_accuracy(model, first, how, 0, cpu) < natural_accuracy(model, first, cpu)
    assert accuracies(model, images, how, 0, cpu, count=None)["pgd_images"] == 1200
    weaker = robust_accuracy(model, first, replace(how, restarts=1, keep="last"), 0, cpu)
    assert said["pgd"] <= weaker
