"""The modules of a network in the order of its forward pass, so that their composition is that pass."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from .. import UsageError
from .cifar import CifarResNet, WideResNet
from .zoo import Classifier, SmallResNet

Chain = list[tuple[str, nn.Module]]


class SpatialMean(nn.Module):
    """The mean over height and width, as some networks of torchvision write their pooling."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Images of features to features."""
        return x.mean([2, 3])


def chain(model: nn.Module) -> Chain:
    """The modules of a network in order; composed, they are its forward pass.

    Args:
        model: A network of the zoo, one of torchvision's families that it has, or one of these behind a normaliser.

    Returns:
        Names within the model, and modules. A step that is no module of the network (flattening) is a fresh one
        without parameters.

    Raises:
        UsageError: The order of this network's modules is not known.
    """
    links = _known_chain(model)
    if links is None:
        raise UsageError(
            f"The blocks of a {type(model).__name__} are not known; use a network of the zoo, a torchvision ResNet, "
            "MobileNetV2, MNASNet, ShuffleNetV2, DenseNet or VGG, or name the parameters."
        )
    return links


def _known_chain(model: nn.Module) -> Chain | None:
    if isinstance(model, Classifier):
        inner = _known_chain(model.net)
        return None if inner is None else [("normalizer", model.normalizer), *((f"net.{k}", m) for k, m in inner)]
    if isinstance(model, SmallResNet):
        blocks = _children(model, "stage1", "stage2", "stage3")
        return [("stem", model.stem), *blocks, ("pool", model.pool), ("head", model.head)]
    if isinstance(model, WideResNet):
        blocks = _children(model, "block1.layer", "block2.layer", "block3.layer")
        return [*_links(model, "conv1"), *blocks, *_links(model, "bn1", "relu", "pool", "fc")]
    if isinstance(model, CifarResNet):
        blocks = _children(model, "layer1", "layer2", "layer3", "layer4")
        return [*_links(model, "conv1", "bn1", "relu"), *blocks, *_links(model, "pool", "linear")]
    return _torchvision_chain(model)


def _torchvision_chain(model: nn.Module) -> Chain | None:
    from torchvision.models import VGG, DenseNet, MNASNet, MobileNetV2, ResNet, ShuffleNetV2

    # a pooling ends in a flattening, whatever it is: the head begins after the last one
    mean, pool = (("pool", nn.Sequential(step, nn.Flatten(1))) for step in (SpatialMean(), nn.AdaptiveAvgPool2d(1)))
    if isinstance(model, ResNet):
        return _resnet_chain(model)
    if isinstance(model, MobileNetV2):
        return [*_children(model, "features"), pool, *_children(model, "classifier")]
    if isinstance(model, MNASNet):
        stacks = [
            _children(model, f"layers.{name}") if isinstance(layer, nn.Sequential) else [(f"layers.{name}", layer)]
            for name, layer in model.layers.named_children()
        ]
        return [*(link for stack in stacks for link in stack), mean, *_children(model, "classifier")]
    if isinstance(model, ShuffleNetV2):
        blocks = _children(model, "stage2", "stage3", "stage4")
        return [*_links(model, "conv1", "maxpool"), *blocks, *_links(model, "conv5"), mean, *_links(model, "fc")]
    if isinstance(model, DenseNet):
        return [*_children(model, "features"), ("relu", nn.ReLU()), pool, *_links(model, "classifier")]
    if isinstance(model, VGG):
        *hidden, dropout, last = _children(model, "classifier")
        flat = ("flatten", nn.Flatten(1)), ("penultimate", nn.Flatten(1))
        return [*_children(model, "features"), *_links(model, "avgpool"), flat[0], *hidden, flat[1], dropout, last]
    return None


def _links(model: nn.Module, *names: str) -> Chain:
    return [(name, model.get_submodule(name)) for name in names]


def _children(model: nn.Module, *stages: str) -> Chain:
    """What lies directly in some stages, in order."""
    return [(f"{s}.{i}", block) for s in stages for i, block in model.get_submodule(s).named_children()]


def _resnet_chain(model: nn.Module) -> Chain:
    stem = _links(model, "conv1", "bn1", "relu", "maxpool")
    blocks = _children(model, "layer1", "layer2", "layer3", "layer4")
    pool = ("avgpool", model.get_submodule("avgpool"))
    head = (
        [(f"fc.{i}", m) for i, m in fc.named_children()]
        if isinstance(fc := model.get_submodule("fc"), nn.Sequential)
        else [("fc", fc)]
    )
    return [*stem, *blocks, pool, ("flatten", nn.Flatten(1)), *head]


def is_block(module: nn.Module) -> bool:
    """Whether a module is one that k counts: a residual block, an inverted one, or a dense one."""
    kinds = {"BasicBlock", "Bottleneck", "InvertedResidual", "_InvertedResidual", "WideBlock", "_DenseBlock"}
    return any(kind.__name__ in kinds for kind in type(module).__mro__)
