"""How often a network is right: on images as they are, and on images moved by an attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attack_settings import EVALUATION_IMAGES
from .attacks import attack as attack_images
from .attacks import evaluating
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
    """Part of the images still put into their own class after the attack, at every point of it that counts.

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
            correct += int((~attack_images(model, x, y, attack, draw).fooled).sum())
            if progress:
                progress("PGD evaluation", min(start + _BATCH, len(images)), len(images))
    return correct / len(images)


def asked_images(images: ImageSet, count: int | None) -> ImageSet:
    """The images that an attack is measured on.

    Args:
        images: A test set.
        count: How many; None, or more than there are: all of them.

    Returns:
        The first so many; of images that lie class by class, so many spread evenly, or the last classes would be missing.
    """
    if count is None or count >= len(images):
        return images
    if bool((images.labels.diff() < 0).any()):
        return images.subset(slice(0, count))
    return images.subset(torch.arange(count) * len(images) // count)


def accuracies(
    model: nn.Module,
    images: ImageSet,
    attack: PGDSettings,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
    *,
    count: int | None = EVALUATION_IMAGES,
) -> dict[str, Any]:
    """Natural accuracy on all images, robust accuracy on some of them, and how both were measured.

    Args:
        model: On the device, in any mode.
        images: What to classify and to attack.
        attack: How.
        seed: Decides the random starts.
        device: Where to do it.
        progress: Told how far it is.
        count: Images to attack, as `asked_images` takes them; None: all.

    Returns:
        Plain JSON values: both rates, each with its number of images, and the attack.
    """
    asked = asked_images(images, count)
    return {
        "natural": natural_accuracy(model, images, device),
        "natural_images": len(images),
        "pgd": robust_accuracy(model, asked, attack, seed, device, progress),
        "pgd_images": len(asked),
        "pgd_steps": attack.steps,
        "pgd_step_size": attack.stride,
        "pgd_norm": attack.norm,
        "pgd_eps": attack.eps,
        "pgd_restarts": attack.restarts,
        "pgd_keep": attack.keep,
    }
