"""Weight files of CARTL's NEFT, which hold weights before their spectral normalisation: made plain, given the factor."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from .. import UsageError
from .errors import CheckpointError

_PARTS = ("weight_orig", "weight_u", "weight_v")


def plain_weights(net: Mapping[str, Tensor], beta: float | None, origin: str) -> tuple[dict[str, Tensor], int]:
    """Put beta W / (u^T W v) in the place of every W, u and v, as the network computed with them in evaluation mode.

    Args:
        net: Weights by name.
        beta: The factor of the normalisation, which the file does not tell.
        origin: The file, for messages.

    Returns:
        Weights under plain names, and how many were normalised.

    Raises:
        CheckpointError: The factor is needed and not given, or a weight cannot be normalised.
        UsageError: The factor is no positive number, or is given and not needed.
    """
    layers = sorted({key.rpartition(".")[0] for key in net if key.rpartition(".")[2] in _PARTS})
    if not layers:
        if beta is not None:
            raise UsageError(f"{origin} holds no spectrally normalised weights; leave beta out.")
        return dict(net), 0
    if beta is None:
        raise CheckpointError(
            f"{origin} holds spectrally normalised weights ({_some(layers, 'weight_orig')}) and not the factor they were "
            "scaled by; give beta (CARTL's are 1, 0.6 and 0.4)."
        )
    if not (math.isfinite(beta) and beta > 0):
        raise UsageError(f"beta is {beta}; give the positive factor that the weights were scaled by.")
    plain = {key: value for key, value in net.items() if key.rpartition(".")[2] not in _PARTS}
    for layer in layers:
        plain[f"{layer}.weight"] = _normalised(net, layer, beta, origin)
    return plain, len(layers)


def _some(layers: list[str], part: str) -> str:
    names = ", ".join(f"{layer}.{part}" for layer in layers[:2])
    return names if len(layers) <= 2 else f"{names} and {len(layers) - 2} others"


def _normalised(net: Mapping[str, Tensor], layer: str, beta: float, origin: str) -> Float[Tensor, "o ..."]:
    missing = [f"{layer}.{part}" for part in _PARTS if f"{layer}.{part}" not in net]
    if missing or f"{layer}.weight" in net:
        odd = f"lacks {', '.join(missing)}" if missing else f"has {layer}.weight beside {layer}.weight_orig"
        raise CheckpointError(
            f"{origin} {odd}; give a file that holds weight_orig, weight_u and weight_v of each layer."
        )
    weight, u, v = (net[f"{layer}.{part}"] for part in _PARTS)
    W = weight.double().flatten(1) if weight.ndim > 1 else weight
    if W.ndim != 2 or (u.shape, v.shape) != (W.shape[:1], W.shape[1:]):
        raise CheckpointError(
            f"{origin} has {layer}.weight_u of shape {tuple(u.shape)} and {layer}.weight_v of shape {tuple(v.shape)} for "
            f"{layer}.weight_orig of shape {tuple(weight.shape)}, which is not [u, v] as a matrix; copy it again."
        )
    sigma = u.double() @ W @ v.double()
    if not (sigma.isfinite() and sigma > 0):
        raise CheckpointError(
            f"{origin} has {layer}.weight_orig with the spectral norm {float(sigma)}; use weights of a fit that went well."
        )
    return (beta * weight.double() / sigma).to(weight.dtype)
