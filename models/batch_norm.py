"""Batch-norm in fine-tuning: which statistics follow the target, and whether scales and shifts are trained."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_statistics(module: nn.Module, follow: bool) -> None:
    """Let the batch-norm layers below a module normalise by the batch and update their statistics, or reuse these.

    Args:
        module: Its other layers keep their mode.
        follow: Update the statistics; otherwise they stay to the bit.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.train(follow)


def freeze_affine(module: nn.Module) -> None:
    """Take the scales and shifts of the batch-norm layers below a module out of the training."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
