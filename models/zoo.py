"""Networks by name; each takes pixels in [0, 1] and carries its own normaliser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import UsageError
from .blocks import BasicBlock
from .cifar import CIFAR, WIDE, CifarResNet, WideResNet
from .heads import HeadSpec, renew_head

_TORCHVISION = (
    *("resnet18", "resnet50", "wide_resnet50_2", "mobilenet_v2", "resnext50_32x4d", "wide_resnet50_4"),
    *("densenet161", "mnasnet1_0", "shufflenet_v2_x1_0", "vgg16_bn"),
)
SMALL = {"small_resnet": (16, 32, 48), "small_resnet_half": (8, 16, 24), "small_resnet_double": (32, 64, 96)}
"""Channels of the three stages of the small residual networks."""
ARCHITECTURES: tuple[str, ...] = (*SMALL, *_TORCHVISION, *WIDE, *CIFAR)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a network before its weights are read."""

    architecture: str
    input_shape: tuple[int, int, int]
    """Channels, height, width of one image."""
    num_classes: int
    mean: tuple[float, ...]
    """Per channel, subtracted from pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, divided by after that."""
    head: HeadSpec = field(default_factory=HeadSpec)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UsageError(
                f"There is no architecture {self.architecture!r}; choose one of {', '.join(ARCHITECTURES)}."
            )
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise UsageError(f"input_shape is {self.input_shape}; give channels, height and width, each at least 1.")
        channels = self.input_shape[0]
        if not len(self.mean) == len(self.std) == channels:
            raise UsageError(
                f"The normaliser has {len(self.mean)} means and {len(self.std)} deviations for {channels} channels; "
                "give one of each per channel."
            )
        if not all(s > 0 for s in self.std):
            raise UsageError(f"The normaliser's std is {self.std}; every deviation must be above 0.")
        if self.num_classes < 2:
            raise UsageError(f"num_classes is {self.num_classes}; a classifier needs at least 2.")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k != "head"}
        head = self.head.to_dict()
        return values | {"head": head} if head else values  # a linear head is not named, as before there were others

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The spec that `to_dict` wrote."""
        return cls(
            architecture=str(values["architecture"]),
            input_shape=(int(values["input_shape"][0]), int(values["input_shape"][1]), int(values["input_shape"][2])),
            num_classes=int(values["num_classes"]),
            mean=tuple(float(v) for v in values["mean"]),
            std=tuple(float(v) for v in values["std"]),
            head=HeadSpec.from_dict(values.get("head", {})),
        )


class Normalizer(nn.Module):
    """(x - mean) / std per channel, with both kept as buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise a batch of images."""
        return (x - self.mean) / self.std


class SmallResNet(nn.Module):
    """Nine residual blocks in three stages for small images; 186 thousand parameters with ten classes.

    At half this width there are 47 thousand, at twice 740 thousand. The stem halves the image once, so that
    28x28 is worked on at 14x14, 7x7 and 4x4.
    """

    BLOCKS = 3

    def __init__(self, channels: int, num_classes: int, widths: tuple[int, int, int] = SMALL["small_resnet"]) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(nn.Conv2d(channels, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.stage1 = self._stage(first, first, stride=1)
        self.stage2 = self._stage(first, second, stride=2)
        self.stage3 = self._stage(second, third, stride=2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(third, num_classes)

    def _stage(self, inner: int, outer: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inner, outer, stride)
        return nn.Sequential(first, *(BasicBlock(outer, outer, 1) for _ in range(self.BLOCKS - 1)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C"]:
        """Normalised images to logits."""
        return self.head(self.pool(self.stage3(self.stage2(self.stage1(self.stem(x))))))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """A normaliser and a network: pixels in [0, 1] go in, logits come out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalizer = Normalizer(spec.mean, spec.std)
        self.net = _network(spec)
        if spec.head.hidden:
            renew_head(self.net, spec.num_classes, spec.head)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C"]:
        """Images in [0, 1] to logits."""
        return self.net(self.normalizer(x))  # type: ignore[no-any-return]


def _network(spec: ModelSpec) -> nn.Module:
    if spec.architecture in SMALL:
        return SmallResNet(spec.input_shape[0], spec.num_classes, SMALL[spec.architecture])
    if spec.architecture in WIDE:
        return WideResNet(spec.input_shape[0], spec.num_classes, *WIDE[spec.architecture])
    if spec.architecture in CIFAR:
        return CifarResNet(spec.input_shape[0], spec.num_classes, *CIFAR[spec.architecture])
    if spec.input_shape[0] != 3:
        raise UsageError(
            f"{spec.architecture} takes colour images, not {spec.input_shape[0]} channels; use input_shape (3, h, w)."
        )
    from torchvision import models

    if spec.architecture == "wide_resnet50_4":  # of Salman et al.; torchvision's own wide_resnet50_2 is made like this
        return models.resnet50(weights=None, num_classes=spec.num_classes, width_per_group=256)  # type: ignore[no-any-return]
    net: nn.Module = getattr(models, spec.architecture)(weights=None, num_classes=spec.num_classes)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.inplace = False  # MNASNet's would change the features that something else still looks at
    return net


def default_input_shape(architecture: str) -> tuple[int, int, int]:
    """Channels, height, width a network of this name is usually given.

    Args:
        architecture: One of `ARCHITECTURES`.

    Returns:
        The shape.

    Raises:
        UsageError: There is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(f"There is no architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}.")
    if architecture in (*WIDE, *CIFAR):
        return (3, 32, 32)
    return (1, 28, 28) if architecture in SMALL else (3, 224, 224)


def build(
    architecture: str,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    input_shape: tuple[int, int, int] | None = None,
) -> Classifier:
    """A freshly initialised network; the weights come from torch's global generator.

    Args:
        architecture: One of `ARCHITECTURES`.
        num_classes: Classes C, the length of the logits.
        mean: Per channel, in units of pixels in [0, 1].
        std: Per channel, in the same units.
        input_shape: Channels, height, width; the architecture's usual one when not given.

    Returns:
        The network in training mode on the CPU.
    """
    return Classifier(
        ModelSpec(
            architecture=architecture,
            input_shape=input_shape or default_input_shape(architecture),
            num_classes=num_classes,
            mean=tuple(mean),
            std=tuple(std),
        )
    )
