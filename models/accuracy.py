"""How often a network is right: on images as they are, and on images moved by an attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attacks import attacked, evaluating
from .device import generator
from .images import ImageSet
from .settings import PGDSettings
from .training import Progress

_BATCH = 500


@torch.no_grad()
def _count_correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    return int((model(x).argmax(1) == y).sum())


def natural_accuracy(model: nn.Module, images: ImageSet, device: torch.device) -> float:
    """Part of the images put into their own class.

    Args:
        model: On the device, in any mode.
        images: What to classify.
        device: Where to do it.

    Returns:
        Accuracy, 0 to 1.
    """
    correct = 0
    with evaluating(model):
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            correct += _count_correct(model, images.images(rows).to(device), images.labels[rows].to(device))
    return correct / len(images)


def robust_accuracy(
    model: nn.Module,
    images: ImageSet,
    attack: PGDSettings,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> float:
    """Part of the images still put into their own class after the attack.

    Args:
        model: On the device, in any mode.
        images: What to attack.
        attack: How.
        seed: Decides the random starts.
        device: Where to do it.
        progress: Told how far it is.

    Returns:
        Accuracy, 0 to 1.
    """
    correct = 0
    draw = generator("evaluation attack", seed, device=device)
    with evaluating(model):
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            x, y = images.images(rows).to(device), images.labels[rows].to(device)
            correct += _count_correct(model, attacked(model, x, y, attack, draw), y)
            if progress:
                progress("PGD evaluation", min(start + _BATCH, len(images)), len(images))
    return correct / len(images)
