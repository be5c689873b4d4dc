"""Projected gradient ascent inside an L2 or Linf ball, from one start or from several."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from .settings import PGDSettings


def _lengths(delta: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    lengths: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return lengths


def random_start(
    x: Float[Tensor, "b c h w"], settings: PGDSettings, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Perturbations drawn uniformly from the ball, one for each image."""
    if settings.norm == "linf":
        return settings.eps * (2 * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 1)
    direction = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    radius = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device, dtype=x.dtype)
    # the volume within radius r grows as r^d
    return direction / _lengths(direction).clamp_min(1e-12) * settings.eps * radius ** (1 / x[0].numel())


def project(delta: Float[Tensor, "b c h w"], settings: PGDSettings) -> Float[Tensor, "b c h w"]:
    """The nearest point of the ball to each perturbation."""
    if settings.norm == "linf":
        return delta.clamp(-settings.eps, settings.eps)
    return delta * (settings.eps / _lengths(delta).clamp_min(1e-12)).clamp_max(1.0)


def _ascent(grad: Float[Tensor, "b c h w"], settings: PGDSettings) -> Float[Tensor, "b c h w"]:
    """The steepest step of the ball's own norm; no step where the gradient is zero."""
    if settings.norm == "linf":
        return settings.stride * grad.sign()
    return settings.stride * grad / _lengths(grad).clamp_min(1e-30)


def step_within(
    x: Float[Tensor, "b c h w"], moved: Float[Tensor, "b c h w"], grad: Float[Tensor, "b c h w"], settings: PGDSettings
) -> Float[Tensor, "b c h w"]:
    """One step of ascent from `moved`, put back into the ball around x and into the range of pixels.

    Args:
        x: Pixels in [0, 1], where the balls have their middle.
        moved: Where the step begins.
        grad: Gradient there of what is to rise.
        settings: Ball, and length of the step.

    Returns:
        Pixels in [0, 1] within eps of x.
    """
    # clipping never leaves the ball, since x itself is in [0, 1]: projecting and then clipping lands in both
    return (x + project(moved + _ascent(grad, settings) - x, settings)).clamp(0, 1)


def pgd(
    loss: Callable[[Float[Tensor, "b c h w"]], Tensor],
    x: Float[Tensor, "b c h w"],
    settings: PGDSettings,
    generator: torch.Generator,
) -> Float[Tensor, "b c h w"]:
    """Images near x with a higher loss of any kind: the last point of one ascent.

    No gradient reaches the parameters that `loss` uses. The caller sees to the mode of the model. Restarts, and a
    choice among the points, take a network's own loss and answers: see `attack`.

    Args:
        loss: Images [b, c, h, w] to a loss per image [b] (or their sum): any differentiable one.
        x: Pixels in [0, 1].
        settings: Ball, number and length of steps, start; `restarts`, `keep` and `stop_early` play no part.
        generator: Draws the random start; on the device of x.

    Returns:
        Pixels in [0, 1] within eps of x, without a graph.
    """
    x = x.detach()
    moved = (x + random_start(x, settings, generator)).clamp(0, 1) if settings.random_start else x.clone()
    for _ in range(settings.steps):
        moved.requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(loss(moved).sum(), moved)
        moved = step_within(x, moved.detach(), grad, settings)
    return moved.detach()


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Evaluation mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(slots=True, eq=False)
class Attack:
    """What an attack found, image by image."""

    images: Float[Tensor, "b c h w"]
    """Of the points that count, the one with the highest loss, or (`keep="success"`) the first that fooled, where one did."""
    loss: Float[Tensor, " b"]
    """Cross-entropy of these images, in nats."""
    fooled: Bool[Tensor, " b"]
    """Whether some point that counts was put into another class; with `keep="loss"` it need not be the one returned."""

    def meet(
        self,
        rows: Int[Tensor, " r"],
        images: Float[Tensor, "r c h w"],
        loss: Float[Tensor, " r"],
        wrong: Bool[Tensor, " r"],
        *,
        first_success: bool,
    ) -> None:
        """Keep of some new points what is better than what is there."""
        better = ~(loss <= self.loss[rows])  # so that the first is taken whatever its loss is
        if first_success:
            better = ~self.fooled[rows] & (wrong | better)
        taken = rows[better]
        self.images[taken] = images[better]
        self.loss[taken] = loss[better]
        self.fooled[rows] |= wrong


def attack(
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    settings: PGDSettings,
    generator: torch.Generator,
) -> Attack:
    """Attack images with everything the settings ask; the model is left as it was found.

    The starts are drawn for all images whatever happens to them, so that one image's do not depend on another's luck.

    Args:
        model: Pixels in [0, 1] to logits [b, C].
        x: Pixels in [0, 1].
        y: True labels.
        settings: The attack.
        generator: Draws the random starts; on the device of x.

    Returns:
        The images, their loss, and which of them fool the model.
    """
    x = x.detach()
    loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    found = Attack(x.clone(), loss, torch.zeros_like(y, dtype=torch.bool))
    with evaluating(model):
        if settings.keep != "last" and settings.random_start:  # otherwise the image is the first point of an ascent
            _ascend(model, x, y, x, replace(settings, steps=0), found)
        for restart in range(settings.restarts):
            drawn = settings.random_start or restart > 0
            start = (x + random_start(x, settings, generator)).clamp(0, 1) if drawn else x
            _ascend(model, x, y, start, settings, found)
    return found


def _ascend(
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    start: Float[Tensor, "b c h w"],
    settings: PGDSettings,
    found: Attack,
) -> None:
    """One ascent of every image that is still to be attacked; the points that count go into `found`."""
    rows = torch.arange(len(x), device=x.device)
    if settings.stop_early:
        rows = rows[~found.fooled]
    moved = start[rows].detach().clone()
    for left in range(settings.steps, -1, -1):
        if not len(rows):
            return
        with torch.set_grad_enabled(left > 0):
            logits = model(moved.requires_grad_(left > 0))
            loss = functional.cross_entropy(logits, y[rows], reduction="none")
            grad = torch.autograd.grad(loss.sum(), moved)[0] if left else torch.empty_like(moved)
        moved = moved.detach()
        if left == 0 or settings.keep != "last":
            wrong = logits.argmax(1) != y[rows]
            found.meet(rows, moved, loss.detach(), wrong, first_success=settings.keep == "success")
            if settings.stop_early:
                rows, moved, grad = rows[~wrong], moved[~wrong], grad[~wrong]
        moved = step_within(x[rows], moved, grad, settings) if left else moved


def attacked(
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    settings: PGDSettings,
    generator: torch.Generator,
) -> Float[Tensor, "b c h w"]:
    """Images moved to raise the model's cross-entropy; the model is left as it was found.

    The attack runs in evaluation mode in training too: it then meets the network that will be used, and its passes do
    not enter the batch-norm statistics.

    Args:
        model: Pixels in [0, 1] to logits [b, C].
        x: Pixels in [0, 1].
        y: True labels.
        settings: The attack.
        generator: Draws the random start; on the device of x.

    Returns:
        Pixels in [0, 1] within eps of x.
    """
    if not settings.plain:
        return attack(model, x, y, settings, generator).images
    with evaluating(model):  # without the pass that `attack` needs to know the loss where it ends
        return pgd(lambda moved: functional.cross_entropy(model(moved), y, reduction="none"), x, settings, generator)
