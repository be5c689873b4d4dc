"""Is theta where its objective has no slope, and do the examples have gradients at all? Reported, never hidden."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .examples import spread
from .side import Side

SAMPLE, RUN = 256, 32  # examples whose own gradients are measured, in evenly spread runs
STEEP = 0.1  # a mean gradient above this share of the mean length of a gradient is worth a warning

NO_OPTIMUM = "influence is derived where there is none."


def stationarity(train: Side, weight_decay: float | None) -> dict[str, Any]:
    """What to know about a model before trusting a first-order score of it.

    Args:
        train: The train set, examined.
        weight_decay: L2 penalty of the training run; None: unknown, and counted as none.

    Returns:
        `mean_gradient`: length of the objective's gradient in the analysed parameters over the mean length of an example's;
        `zero_gradients`: train examples whose loss has no slope in the logits; `absent_classes`; `warnings`, sentences.
    """
    lengths = torch.cat([train.gradient_lengths(rows) for rows in spread(len(train), SAMPLE, RUN)])
    typical = float(lengths.mean())
    slope = float(mean_gradient(train, weight_decay or 0.0).norm())
    ratio = slope / typical if typical > 0 else 0.0
    zero = int((train.residual.abs().amax(1) == 0).sum())
    absent = sorted(set(range(train.num_classes)) - set(train.examples.label.tolist()))
    warnings = []
    if ratio > STEEP:
        penalty = f"with weight decay {weight_decay:g}" if weight_decay else "without a penalty"
        warnings.append(
            f"The objective ({penalty}) still has a slope of {ratio:.2f} mean gradient lengths at these weights; "
            f"{NO_OPTIMUM}"
        )
    if zero:
        warnings.append(
            f"{zero} of {len(train)} train examples have a gradient of exactly zero: they score zero for every query."
        )
    if absent:
        warnings.append(
            f"No train example has class {', '.join(map(str, absent))}: scores of such queries mean little."
        )
    return {"mean_gradient": ratio, "zero_gradients": zero, "absent_classes": absent, "warnings": warnings}


def mean_gradient(train: Side, weight_decay: float) -> Tensor:
    """Gradient of the objective f = (1/n) sum_i l_i + (wd/2) |theta|^2.

    Args:
        train: The train set, examined.
        weight_decay: wd, on every analysed parameter.

    Returns:
        One vector [p].
    """
    problem = train.problem
    theta = {name: value.clone().requires_grad_() for name, value in problem.start().items()}
    total = {name: torch.zeros_like(value) for name, value in theta.items()}
    for start in range(0, len(train), train.batch_size):
        rows = slice(start, min(start + train.batch_size, len(train)))
        with torch.enable_grad():
            loss = problem.losses(problem.logits(theta, train.inputs(rows)), train.target[rows]).sum()
            grads = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        for name, grad in zip(theta, grads, strict=True):
            if grad is not None:  # None: the loss does not reach this parameter
                total[name] += grad
    return problem.flatten({name: total[name] / len(train) + weight_decay * theta[name].detach() for name in theta})
