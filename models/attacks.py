"""Projected gradient ascent inside an L2 or Linf ball, and accuracy under it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
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


def pgd(
    loss: Callable[[Float[Tensor, "b c h w"]], Tensor],
    x: Float[Tensor, "b c h w"],
    settings: PGDSettings,
    generator: torch.Generator,
) -> Float[Tensor, "b c h w"]:
    """Images near x with a higher loss.

    Clipping to [0, 1] never leaves the ball, since x itself is in [0, 1]: projecting and then clipping lands in both.
    No gradient reaches the parameters that `loss` uses. The caller sees to the mode of the model; see `attacked`.

    Args:
        loss: Images [b, c, h, w] to a loss per image [b] (or their sum): any differentiable one.
        x: Pixels in [0, 1].
        settings: Ball, number and length of steps, start.
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
        moved = (x + project(moved.detach() + _ascent(grad, settings) - x, settings)).clamp(0, 1)
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
    with evaluating(model):
        return pgd(lambda moved: functional.cross_entropy(model(moved), y, reduction="none"), x, settings, generator)
