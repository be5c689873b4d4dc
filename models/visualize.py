"""Images that raise a unit of the penultimate layer: what it looks for (Figure 1 of Utrera et al.)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import UsageError
from .attacks import step_within
from .device import generator
from .feature_settings import VisualizeSettings
from .images import ImageSet
from .settings import PGDSettings
from .transfer import split

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raised:
    """Images before and after their ascent."""

    start: Float[Tensor, "b c h w"]
    image: Float[Tensor, "b c h w"]
    """Of all the points passed, the start among them, the one with the highest activation."""
    unit: Int[Tensor, " b"]
    """The unit that each image was to raise."""
    before: Float[Tensor, " b"]
    """Activation of the unit at the start."""
    after: Float[Tensor, " b"]


def penultimate(model: nn.Module) -> nn.Sequential:
    """The part of a network before its head, hidden layers of the head left out.

    Args:
        model: A network that `split` knows; its own modules are shared.

    Returns:
        Pixels in [0, 1] to features [b, d].
    """
    return split(model, 0).frozen


@torch.no_grad()
def features_of(features: nn.Module, images: ImageSet, device: torch.device) -> Iterator[Float[Tensor, "b d"]]:
    """The features of a set, batch by batch.

    Args:
        features: Pixels to features, in evaluation mode.
        images: The set.
        device: Where the features are computed.

    Yields:
        Features on the device.
    """
    for start in range(0, len(images), _BATCH):
        yield features(images.images(slice(start, start + _BATCH)).to(device))


def most_active(features: nn.Module, images: ImageSet, count: int, device: torch.device) -> Int[Tensor, " u"]:
    """The units that are most active on average over some images.

    Args:
        features: Pixels to features, in evaluation mode.
        images: Where the average is taken over.
        count: How many units.
        device: Where the features are computed.

    Returns:
        Their numbers, the most active one first; equals in order.

    Raises:
        UsageError: There are fewer units.
    """
    total = sum(part.double().sum(0) for part in features_of(features, images, device))
    assert isinstance(total, Tensor)
    if count > len(total):
        raise UsageError(
            f"{count} units are asked for and the penultimate layer has {len(total)}; ask for {len(total)} or fewer."
        )
    return total.cpu().argsort(descending=True, stable=True)[:count]


def noise_images(count: int, shape: tuple[int, int, int], seed: int) -> Float[Tensor, "b c h w"]:
    """Images whose pixels are uniform in [0, 1].

    Args:
        count: How many.
        shape: Channels, height and width.
        seed: Decides them; the first ones do not depend on their number.

    Returns:
        float32, on the CPU.
    """
    drawn = [torch.rand(shape, generator=generator("visualize", seed, i)) for i in range(count)]
    return torch.stack(drawn) if drawn else torch.zeros(0, *shape)


def raise_units(
    features: nn.Module, start: Float[Tensor, "b c h w"], unit: Int[Tensor, " b"], settings: VisualizeSettings
) -> Raised:
    """Normalised gradient ascent of one unit for each image, with pixels kept in [0, 1].

    Args:
        features: Pixels to features, in evaluation mode and on the device of the images.
        start: Where the ascents begin, in [0, 1].
        unit: The unit that each is to raise.
        settings: Number and length of the steps, and how far they may lead.

    Returns:
        The images; activations never end below where they began.

    Raises:
        UsageError: There is no such unit.
    """
    start = start.detach()
    with torch.no_grad():
        width = features(start[:1]).shape[1]
    if int(unit.max()) >= width:
        raise UsageError(
            f"There is no unit {int(unit.max())}; the penultimate layer has {width}, numbered 0 to {width - 1}."
        )
    # no two images are further apart than the diagonal of the cube of pixels
    radius = math.sqrt(start[0].numel()) if settings.radius is None else settings.radius
    ball = PGDSettings(norm="l2", eps=radius, step_size=settings.step_size)
    best, moved = start.clone(), start
    before = after = torch.full((len(start),), -math.inf, dtype=start.dtype, device=start.device)
    for i in range(settings.steps + 1):
        with torch.enable_grad():
            moved = moved.detach().requires_grad_()
            value = features(moved).gather(1, unit[:, None])[:, 0]
            (grad,) = torch.autograd.grad(value.sum(), moved)
        value, moved = value.detach(), moved.detach()
        before = value if i == 0 else before
        best = torch.where((value > after)[:, None, None, None], moved, best)
        after = torch.maximum(after, value)
        moved = step_within(start, moved, grad, ball)
    return Raised(start=start, image=best, unit=unit, before=before, after=after)
