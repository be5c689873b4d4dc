"""How others lay out their weight files, and which network of the zoo they fit.

Known are torchvision's plain state dictionaries and the files of the robustness library and those made with it:
`module.model.*` (twice for some architectures), a second copy under `module.attacker`, the normaliser in
`module.normalizer`, and no `num_batches_tracked` in the oldest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import UsageError
from .errors import CheckpointError
from .zoo import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, Classifier, ModelSpec, Normalizer, default_input_shape

_WRAPPERS = ("model", "state_dict", "model_weights")
_COUNTER = "num_batches_tracked"


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
) -> Found:
    """Find a network in the content of somebody else's weight file.

    Args:
        content: What the file holds.
        origin: The file, for messages.
        architecture: Its name, when it cannot be told from the weights.
        input_shape: Channels, height, width; the architecture's usual one when not given.
        mean: Of the normaliser, when the file has none.
        std: Likewise.

    Returns:
        The weights, ready for the network that fits them.

    Raises:
        CheckpointError: There are no weights, or they fit no network of the zoo.
        UsageError: A normaliser is given for a file that has one, or only half of one is given.
    """
    weights, wrapper = _weights(content, origin)
    net, normalizer, facts = _strip(weights)
    _refuse_foreign(net, origin)
    fitting = _fitting(net, origin, architecture)
    facts = [f"{fitting} with {_classes(net, fitting)} classes", *([wrapper] if wrapper else []), *facts]
    if (mean is None) != (std is None):
        raise UsageError("Only one of mean and std is given; a normaliser needs both.")
    if normalizer is not None and mean is not None:
        raise UsageError(f"{origin} has its own normaliser; leave mean and std out.")
    shape = input_shape or (_channels(net, fitting), *default_input_shape(fitting)[1:])
    if normalizer is not None:
        facts.append("normaliser from the file")
        mean, std = normalizer
    elif mean is not None:
        facts.append("normaliser as given")
    elif fitting != "small_resnet" and _classes(net, fitting) == 1000:
        facts.append("no normaliser in the file, ImageNet's is assumed")
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        raise CheckpointError(f"{origin} has no normaliser; give the mean and std it was trained with.")
    spec = ModelSpec(
        architecture=fitting,
        input_shape=shape,
        num_classes=_classes(net, fitting),
        mean=tuple(mean or ()),
        std=tuple(std or ()),
    )
    tensors = {f"net.{name}": value for name, value in net.items()}
    tensors |= Normalizer(spec.mean, spec.std).state_dict(prefix="normalizer.")
    with torch.device("meta"):
        counters = [key for key in Classifier(spec).state_dict() if key.endswith(_COUNTER) and key not in tensors]
    if counters:
        facts.append(f"{len(counters)} batch-norm layers without {_COUNTER}")
        tensors |= {key: torch.zeros((), dtype=torch.int64) for key in counters}
    return Found(spec=spec, tensors=tensors, facts=facts, numbers=_numbers(content))


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
    return net, normalizer, facts


def _refuse_foreign(net: Mapping[str, Tensor], origin: str) -> None:
    """Layouts that are known, and known not to fit."""
    if any(key.endswith(("weight_orig", "weight_u", "weight_v")) for key in net):
        raise CheckpointError(
            f"{origin} holds spectrally normalised weights without the factor they were scaled by; "
            "use the checkpoint from before that step."
        )
    if any(".shortcut." in key for key in net) and "linear.weight" in net:
        raise CheckpointError(f"{origin} is a CIFAR network with a 3x3 stem; the zoo has {', '.join(ARCHITECTURES)}.")
    if any(key.startswith("block1.layer.") for key in net):
        raise CheckpointError(f"{origin} is a wide ResNet for small images; the zoo has {', '.join(ARCHITECTURES)}.")
    if "fc.0.weight" in net:
        raise CheckpointError(f"{origin} has a head with hidden layers; use the source it was transferred from.")


def _head(architecture: str) -> str:
    return {"small_resnet": "head", "mobilenet_v2": "classifier.1"}.get(architecture, "fc")


def _classes(net: Mapping[str, Tensor], architecture: str) -> int:
    return len(net[f"{_head(architecture)}.bias"])


def _channels(net: Mapping[str, Tensor], architecture: str) -> int:
    return net["stem.0.weight"].shape[1] if architecture == "small_resnet" else 3


def _outline(net: Mapping[str, Tensor], architecture: str) -> dict[str, torch.Size] | None:
    """Names and shapes the architecture would have with this head; None when the head is not there."""
    bias = net.get(f"{_head(architecture)}.bias")
    if (
        bias is None
        or bias.ndim != 1
        or len(bias) < 2
        or (architecture == "small_resnet" and "stem.0.weight" not in net)
    ):
        return None
    shape = (_channels(net, architecture), *default_input_shape(architecture)[1:])
    spec = ModelSpec(
        architecture=architecture,
        input_shape=shape,
        num_classes=len(bias),
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
    )
    with torch.device("meta"):
        model: nn.Module = Classifier(spec).net
    return {key: value.shape for key, value in model.state_dict().items() if not key.endswith(_COUNTER)}


def _fitting(net: Mapping[str, Tensor], origin: str, architecture: str | None) -> str:
    """The architecture whose names and shapes are exactly those found."""
    if architecture is not None and architecture not in ARCHITECTURES:
        raise UsageError(f"There is no architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}.")
    found = {key: value.shape for key, value in net.items() if not key.endswith(_COUNTER)}
    for name in [architecture] if architecture else ARCHITECTURES:
        if _outline(net, name) == found:
            return name
    wanted = architecture or f"any of {', '.join(ARCHITECTURES)}"
    outline = (_outline(net, architecture) if architecture else None) or {}
    odd = sorted(k for k in {*found, *outline} if found.get(k) != outline.get(k))
    detail = (
        f" ({odd[0]} is {_shape(found, odd[0])} and should be {_shape(outline, odd[0])})" if outline and odd else ""
    )
    raise CheckpointError(
        f"{origin} does not fit {wanted}{detail}; name the architecture it was made with, if it is one of these."
    )


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
