"""How others lay out their weight files, and which network of the zoo they fit.

Known are torchvision's plain state dictionaries; the files of the robustness library and those made with it:
`module.model.*` (twice for some architectures), a second copy under `module.attacker`, the normaliser in
`module.normalizer`, and no `num_batches_tracked` in the oldest; and CARTL's, wide residual networks without a normaliser,
some with the spectral normalisation of NEFT still in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import UsageError
from .cifar import CIFAR, WIDE
from .errors import CheckpointError
from .heads import HeadSpec
from .neft import plain_weights
from .zoo import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL,
    Classifier,
    ModelSpec,
    Normalizer,
    default_input_shape,
)

_WRAPPERS = ("model", "state_dict", "model_weights")
_COUNTER = "num_batches_tracked"
_CARTL_STATISTICS = "0.5071 0.4865 0.4409 and 0.2673 0.2564 0.2762"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A network's weights under the names of the zoo, and what else the file says."""

    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    """One for each entry of the state of the network that `spec` builds."""
    facts: Sequence[str]
    """What was found and what was assumed, in words."""
    numbers: Mapping[str, float]
    """Single numbers beside the weights, such as the epoch."""


def interpret(
    content: object,
    origin: str,
    *,
    architecture: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    beta: float | None = None,
) -> Found:
    """Find a network in the content of somebody else's weight file.

    Args:
        content: What the file holds.
        origin: The file, for messages.
        architecture: Its name, when it cannot be told from the weights.
        input_shape: Channels, height, width; the architecture's usual one when not given.
        mean: Of the normaliser, when the file has none.
        std: Likewise.
        beta: Factor of spectrally normalised weights, when there are any.

    Returns:
        The weights, ready for the network that fits them.

    Raises:
        CheckpointError: There are no weights, or they fit no network of the zoo.
        UsageError: A normaliser or a factor is given for a file that needs none, or only half a normaliser is given.
    """
    weights, wrapper = _weights(content, origin)
    net, normalizer, facts = _strip(weights)
    net, scaled = plain_weights(net, beta, origin)
    if scaled:
        facts.append(f"spectral normalisation of {scaled} weights folded in with beta {beta:g}")
    fitting = _fitting(net, origin, architecture)
    classes, head = _head_layers(net, fitting)  # type: ignore[misc]  # what fits has a head
    layers = f" and {head.hidden} hidden layers in its head" if head.hidden else ""
    facts = [f"{fitting} with {classes} classes{layers}", *([wrapper] if wrapper else []), *facts]
    shape = input_shape or (_channels(net, fitting) or 3, *default_input_shape(fitting)[1:])
    mean, std, fact = _normaliser(normalizer, mean, std, origin, fitting, classes)
    facts.append(fact)
    spec = ModelSpec(
        architecture=fitting,
        input_shape=shape,
        num_classes=classes,
        mean=tuple(mean),
        std=tuple(std),
        head=head,
    )
    tensors = {f"net.{name}": value for name, value in net.items()}
    tensors |= Normalizer(spec.mean, spec.std).state_dict(prefix="normalizer.")
    with torch.device("meta"):
        counters = [key for key in Classifier(spec).state_dict() if key.endswith(_COUNTER) and key not in tensors]
    if counters:
        facts.append(f"{len(counters)} batch-norm layers without {_COUNTER}")
        tensors |= {key: torch.zeros((), dtype=torch.int64) for key in counters}
    return Found(spec=spec, tensors=tensors, facts=facts, numbers=_numbers(content))


def _normaliser(
    held: tuple[list[float], list[float]] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    origin: str,
    architecture: str,
    classes: int,
) -> tuple[Sequence[float], Sequence[float], str]:
    """Mean and deviation from the file, from the user, or ImageNet's where nothing else is usual; and which it was."""
    if (mean is None) != (std is None):
        raise UsageError("Only one of mean and std is given; a normaliser needs both.")
    if mean is not None and std is not None:
        if held is not None:
            raise UsageError(f"{origin} has its own normaliser; leave mean and std out.")
        return mean, std, "normaliser as given"
    if held is not None:
        return *held, "normaliser from the file"
    if classes == 1000 and architecture not in (*SMALL, *WIDE, *CIFAR):
        return IMAGENET_MEAN, IMAGENET_STD, "no normaliser in the file, ImageNet's is assumed"
    hint = f" (CARTL's for CIFAR-10 and CIFAR-100: {_CARTL_STATISTICS})" if architecture in WIDE else ""
    raise CheckpointError(f"{origin} has no normaliser; give the mean and std it was trained with{hint}.")


def _weights(content: object, origin: str) -> tuple[dict[str, Tensor], str | None]:
    """The dictionary of tensors, and the word it was found under."""
    if isinstance(content, dict):
        for word in (*_WRAPPERS, None):
            inner = content if word is None else content.get(word)
            tensors = {k: v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, dict) else {}
            if tensors and all(isinstance(key, str) for key in tensors):
                return tensors, f"weights under {word!r}" if word else None
    raise CheckpointError(
        f"{origin} holds no weights (a dictionary of tensors); give a checkpoint or a state dictionary."
    )


def _strip(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], tuple[list[float], list[float]] | None, list[str]]:
    """Weights without the prefixes of wrappers, the normaliser, and what was done."""
    facts = []
    plain = {key.removeprefix("module."): value for key, value in weights.items()}
    if attacker := [key for key in plain if key.startswith("attacker.")]:
        facts.append(f"{len(attacker)} tensors of the attacker's copy ignored")
    normalizer = None
    for word in ("normalizer", "normalize"):
        if {f"{word}.new_mean", f"{word}.new_std"} <= plain.keys():
            halves = [plain[f"{word}.{half}"].double().flatten() for half in ("new_mean", "new_std")]
            normalizer = ([round(float(v), 6) for v in halves[0]], [round(float(v), 6) for v in halves[1]])
            break
    net = {k: v for k, v in plain.items() if k.split(".")[0] not in {"attacker", "normalizer", "normalize"}}
    depth = 0
    while net and all(key.startswith("model.") for key in net):
        net = {key.removeprefix("model."): value for key, value in net.items()}
        depth += 1
    if depth:
        facts.append(f"prefix {'model.' * depth} taken off")
    # torchvision's own files of a DenseNet are older than a rule against dots in names
    net = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value for key, value in net.items()}
    return net, normalizer, facts


def _head(architecture: str) -> str:
    special = {"mobilenet_v2": "classifier.1", "mnasnet1_0": "classifier.1"}
    special |= {"densenet161": "classifier", "vgg16_bn": "classifier.6"}
    special |= dict.fromkeys(SMALL, "head") | dict.fromkeys(CIFAR, "linear")
    return special.get(architecture, "fc")


def _head_layers(net: Mapping[str, Tensor], architecture: str) -> tuple[int, HeadSpec] | None:
    """The number of classes and the layers of the head; None where the architecture's head is not there."""
    name = _head(architecture)
    layers = [
        re.fullmatch(rf"{re.escape(name)}\.([0-9]{{1,3}})\.weight", key)
        for key, value in net.items()
        if value.ndim == 2
    ]
    linear = sorted(int(layer[1]) for layer in layers if layer)
    last = f"{name}.{linear[-1]}" if len(linear) > 1 and f"{name}.bias" not in net else name
    bias = net.get(f"{last}.bias")
    if bias is None or bias.ndim != 1 or len(bias) < 2:
        return None
    if last == name:
        return len(bias), HeadSpec()
    width = len(net[f"{name}.{linear[0]}.weight"])
    normed = any(key.startswith(f"{name}.") and key.endswith(".running_mean") for key in net)
    return len(bias), HeadSpec(hidden=len(linear) - 1, width=width, batch_norm=normed)


def _channels(net: Mapping[str, Tensor], architecture: str) -> int | None:
    """Channels of the images the network takes; None where the first convolution is not there."""
    if architecture not in (*SMALL, *WIDE, *CIFAR):
        return 3
    first = net.get("stem.0.weight" if architecture in SMALL else "conv1.weight")
    return first.shape[1] if first is not None and first.ndim == 4 and first.shape[1] else None


def _outline(net: Mapping[str, Tensor], architecture: str) -> dict[str, torch.Size] | None:
    """Names and shapes the architecture would have with this head and first layer; None when one is not there."""
    layers, channels = _head_layers(net, architecture), _channels(net, architecture)
    if layers is None or channels is None:
        return None
    spec = ModelSpec(
        architecture=architecture,
        input_shape=(channels, *default_input_shape(architecture)[1:]),
        num_classes=layers[0],
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        head=layers[1],
    )
    with torch.device("meta"):
        model: nn.Module = Classifier(spec).net
    return {key: value.shape for key, value in model.state_dict().items() if not key.endswith(_COUNTER)}


def _fitting(net: Mapping[str, Tensor], origin: str, architecture: str | None) -> str:
    """The architecture whose names and shapes are exactly those found."""
    if architecture is not None and architecture not in ARCHITECTURES:
        raise UsageError(f"There is no architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}.")
    found = {key: value.shape for key, value in net.items() if not key.endswith(_COUNTER)}
    outlines = {}
    for name in [architecture] if architecture else ARCHITECTURES:
        outlines[name] = _outline(net, name) or {}
        if outlines[name] == found:
            return name
    wanted = architecture or f"any of {', '.join(ARCHITECTURES)}"
    raise CheckpointError(
        f"{origin} does not fit {wanted} ({_difference(found, outlines)}); "
        "name the architecture it was made with, if it is one of these."
    )


def _difference(found: Mapping[str, torch.Size], outlines: Mapping[str, Mapping[str, torch.Size]]) -> str:
    """What sets the weights apart from the architecture that has most of them."""
    closest = max(outlines, key=lambda name: len(found.items() & outlines[name].items()))
    outline = outlines[closest]
    if 2 * len(found.items() & outline.items()) <= len(found):
        more = f" and {len(found) - 3} others" if len(found) > 3 else ""
        return f"it holds {', '.join(list(found)[:3])}{more}"
    odd = min(key for key in {*found, *outline} if found.get(key) != outline.get(key))
    difference = f"{odd} is {_shape(found, odd)} and should be {_shape(outline, odd)}"
    return difference if len(outlines) == 1 else f"{closest} is closest, and there {difference}"


def _shape(shapes: Mapping[str, torch.Size], key: str) -> str:
    return str(tuple(shapes[key])) if key in shapes else "absent"


def _numbers(content: Any) -> dict[str, float]:
    """Single numbers at the top of a checkpoint."""
    found = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(key, str) and isinstance(value, int | float) and value == value and abs(value) < 1e300:
            found[key] = value
    return found
