"""Saliency: the gradient of a prediction's loss in its own input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import UsageError
from .problem import evaluating
from .rows import cross_entropy
from .tables import Table

Method = Literal["gradient", "smoothgrad", "integrated"]
SAMPLES = 25  # noisy copies of SmoothGrad
NOISE = 0.1  # their standard deviation, where pixels run from 0 to 1
STEPS = 50  # of the path of integrated gradients, from a black image


def input_gradient(
    model: nn.Module,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, " b"],
    method: Method = "gradient",
    batch_size: int = 256,
) -> Float[Tensor, "b ..."]:
    """Gradient of the cross-entropy at y with respect to x; for a network with its normaliser inside, to [0, 1] pixels.

    Args:
        model: Any module from x to logits; left as it was found.
        x: Inputs, on any device.
        y: The label whose loss is differentiated.
        method: "gradient"; "smoothgrad" (its mean over noisy copies, Smilkov et al. 2017) or "integrated" (integrated
            gradients from black, Sundararajan et al. 2017), both by captum.
        batch_size: Inputs in one backward pass.

    Returns:
        Gradients of the shape and on the device of x, nats per unit of input (integrated: nats).

    Raises:
        UsageError: The method is unknown, or captum is not installed.
    """
    if method not in ("gradient", "smoothgrad", "integrated"):
        raise UsageError(f"method must be gradient, smoothgrad or integrated, got {method!r}.")
    device = next(model.parameters()).device

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    parts = []
    with evaluating(model), torch.enable_grad():
        for start in range(0, len(x), batch_size):
            inputs = x[start : start + batch_size].detach().to(device).requires_grad_()
            labels = y[start : start + batch_size].to(device)
            if method == "gradient":
                # the sum's gradient in one example is that example's own: eval-mode examples do not see each other
                (gradient,) = torch.autograd.grad(losses(inputs, labels).sum(), inputs)
            else:
                gradient = _by_captum(losses, inputs, labels, method)
            parts.append(gradient.detach().to(x.device))
    return torch.cat(parts)


def _by_captum(losses: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, method: Method) -> Tensor:
    try:
        from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
    except ImportError as error:
        raise UsageError(f"method={method} needs captum; `pip install upweight[captum]`.") from error
    out: Tensor
    if method == "integrated":
        out = IntegratedGradients(losses).attribute(x, additional_forward_args=(y,), n_steps=STEPS)
        return out
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)  # captum draws its noise from the global generator
        tunnel = NoiseTunnel(Saliency(losses))
        out = tunnel.attribute(
            x, nt_type="smoothgrad", nt_samples=SAMPLES, stdevs=NOISE, additional_forward_args=(y,), abs=False
        )
    return out


def saliency_table(
    model: nn.Module,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, " b"],
    gradients: Float[Tensor, "b ..."],
    rows: NDArray[np.int64],
    index: NDArray[np.int64],
) -> Table:
    """Numbers that go with the pictures of input gradients.

    Args:
        model: The network.
        x: Inputs.
        y: The labels that losses were taken at.
        gradients: What `input_gradient` gave.
        rows: Rows of the queries.
        index: Their ids.

    Returns:
        query, id, label, prediction, loss (nats), gradient_norm, alignment: the absolute cosine of gradient and input.
    """
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        logits = model(x.to(device)).cpu()
    g, flat = gradients.flatten(1).double(), x.flatten(1).double().cpu()
    length = g.norm(dim=1)
    cosine = (g * flat).sum(1).abs() / (length * flat.norm(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    columns = {
        "query": rows,
        "id": index,
        "label": y.numpy(),
        "prediction": logits.argmax(1).numpy(),
        "loss": cross_entropy(logits, y).numpy(),
        "gradient_norm": length.numpy(),
        "alignment": cosine.numpy(),
    }
    return Table(columns, "Gradient of the loss in the input")
