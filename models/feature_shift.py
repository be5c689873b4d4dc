"""How far a random change of an image moves the penultimate features of a network (Figure 7 of Shafahi et al.)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .augment import augment
from .device import generator
from .feature_settings import FeatureShiftSettings
from .images import ImageSet

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureShift:
    """Distances between the features of images and of their changed versions, and the size of the features themselves."""

    l2: Float[Tensor, " n"]
    """Euclidean length of the difference."""
    mean_abs: Float[Tensor, " n"]
    """Mean absolute difference."""
    l2_size: Float[Tensor, " n"]
    """Euclidean length of the features of the image as it is."""
    mean_abs_size: Float[Tensor, " n"]
    """Mean absolute value of these features."""


@torch.no_grad()
def measure_shift(
    features: nn.Module, images: ImageSet, settings: FeatureShiftSettings, device: torch.device
) -> FeatureShift:
    """Change every image once, and see how far its features move.

    Args:
        features: Pixels in [0, 1] to features [b, d], in evaluation mode and on the device.
        images: The images.
        settings: The change, and its seed.
        device: Where the features are computed.

    Returns:
        Both distances that learning without forgetting knows, image by image, in float64 on the CPU.
    """
    parts = []
    for i, start in enumerate(range(0, len(images), _BATCH)):
        x = images.images(slice(start, start + _BATCH))
        draw = generator("feature shift", settings.seed, i)
        changed = augment(x, draw, shift=settings.shift, flip=settings.flip, rotate=settings.rotate)
        plain, moved = (features(batch.to(device)).double().cpu() for batch in (x, changed))
        parts.append(torch.stack([*_sizes(moved - plain), *_sizes(plain)]))
    l2, mean_abs, l2_size, mean_abs_size = torch.cat(parts, dim=1)
    return FeatureShift(l2=l2, mean_abs=mean_abs, l2_size=l2_size, mean_abs_size=mean_abs_size)


def _sizes(vectors: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
    return torch.linalg.vector_norm(vectors, dim=1), vectors.abs().mean(dim=1)
