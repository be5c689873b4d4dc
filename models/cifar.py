"""Networks for images of 32x32: wide residual networks, and residual networks whose stem is one 3x3 convolution."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks import BasicBlock, Bottleneck, WideBlock

WIDE = {
    "wrn_10_1": (1, 1),
    "wrn_16_1": (2, 1),
    "wrn_28_4": (4, 4),
    "wrn_34_10": (5, 10),
    "wrn_32_10": (5, 10),  # what Shafahi et al. call 32-10, counting two layers fewer, is the 34-10 of others
}
"""Blocks in each of the three stages n, and width w; a name's depth is 6 n + 4."""

CIFAR: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "cifar_resnet18": (BasicBlock, (2, 2, 2, 2)),
    "cifar_resnet34": (BasicBlock, (3, 4, 6, 3)),
    "cifar_resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""The kind of block, and how many there are in each of the four stages."""


def _pool() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


class _Stage(nn.Module):
    """The blocks of one stage, under the name that published weight files give them."""

    def __init__(self, inner: int, outer: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = (WideBlock(outer, outer, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(inner, outer, stride), *rest)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o u v"]:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Three stages of n pre-activation blocks, w times as wide as 16, 32 and 64 channels; leaky rectifiers of slope 0.1.

    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146, with the rectifier and the names of CARTL's code.
    """

    def __init__(self, channels: int, num_classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = _Stage(16, 16 * width, 1, blocks)
        self.block2 = _Stage(16 * width, 32 * width, 2, blocks)
        self.block3 = _Stage(32 * width, 64 * width, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.LeakyReLU(0.1)
        self.pool = _pool()
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C"]:
        """Normalised images to logits."""
        y = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(self.relu(self.bn1(y))))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """Four stages of residual blocks behind one 3x3 convolution that halves nothing; the head is called `linear`.

    Source: the CIFAR networks of MadryLab's robustness library.
    """

    def __init__(
        self, channels: int, num_classes: int, kind: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...]
    ) -> None:
        super().__init__()
        widths = [64 * 2**stage * (4 if kind is Bottleneck else 1) for stage in range(4)]
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        inner = 64
        for stage, (outer, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            rest = (kind(outer, outer, 1) for _ in range(count - 1))
            setattr(self, f"layer{stage}", nn.Sequential(kind(inner, outer, 1 if stage == 1 else 2), *rest))
            inner = outer
        self.pool = _pool()
        self.linear = nn.Linear(inner, num_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C"]:
        """Normalised images to logits."""
        y = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            y = self.get_submodule(f"layer{stage}")(y)
        return self.linear(self.pool(y))  # type: ignore[no-any-return]
