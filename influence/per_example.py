"""Per-example gradients read off the layers: one backward pass for a block of examples, and an outer product each.

Batching the backward pass over examples, as `torch.func` does, turns every convolution into one of as many groups as there are
examples, which is slow on a CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .layers import NotPerExampleError, Pair, Plan, SilentLayerError, contributions, plan_layers, rows_by_torch_func
from .problem import Problem


def gradient_plan(problem: Problem, z: Tensor, classes: int) -> Plan | None:
    """Which layers can be read, for a problem; held against autograd on a few examples.

    Args:
        problem: The analysed function, not linear; its model is in eval mode.
        z: Their inputs.
        classes: Number of logits.

    Returns:
        The plan, or None where autograd has to do it all: a weight that is also read outside its layer fools hooks.
    """
    layers, other = plan_layers(problem)
    residual = torch.linspace(1, 2, classes, dtype=torch.float64, device=z.device).expand(len(z), -1)
    while layers:
        plan = Plan(layers, other, {})
        try:
            found = gradients(problem, plan, z, residual)
        except (
            NotPerExampleError,
            SilentLayerError,
        ) as error:  # autograd knows that a layer that does not run has no gradient
            name = error.layer if isinstance(error, SilentLayerError) else error.args[0]
            other = (*other, *(f"{name}.{short}" if name else short for short in layers.pop(name)))
            continue
        wanted = torch.stack([_alone(problem, z[i : i + 1], residual[i]) for i in range(len(z))])
        allowed = torch.finfo(problem.dtype).eps ** 0.5 * wanted.abs().amax(1, keepdim=True)
        return plan if bool(((found - wanted).abs() <= allowed).all()) else None
    return None


def _alone(problem: Problem, z: Tensor, residual: Float[Tensor, " C"]) -> Float[Tensor, " p"]:
    """The gradient of one example by plain autograd."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in problem.theta.items()}
    with torch.enable_grad():
        found = torch.autograd.grad(
            problem.logits(theta, z)[0] @ residual.to(problem.dtype),
            list(theta.values()),
            allow_unused=True,
            materialize_grads=True,
        )
    return torch.cat([part.flatten() for part in found])


def gradients(problem: Problem, plan: Plan, z: Tensor, residual: Float[Tensor, "b C"]) -> Float[Tensor, "b p"]:
    """The residual sent back through the network, example by example.

    Args:
        problem: The analysed function; its model is in eval mode.
        plan: What `gradient_plan` gave.
        z: Inputs of b examples.
        residual: Gradients of their losses in the logits.

    Returns:
        Gradients [b, p], parameters flattened in the order of `theta`, nats per unit of parameter.
    """
    named = _by_name(problem, plan, z, residual)
    return torch.cat([named[name] for name in problem.theta], dim=1)


def lengths(problem: Problem, plan: Plan, z: Tensor, residual: Float[Tensor, "b C"]) -> Float[Tensor, " b"]:
    """Euclidean lengths of the per-example gradients, which are not put side by side for it.

    Args:
        problem: The analysed function; its model is in eval mode.
        plan: What `gradient_plan` gave.
        z: Inputs of b examples.
        residual: Gradients of their losses in the logits.

    Returns:
        Lengths [b], float64.
    """
    named = _by_name(problem, plan, z, residual)
    parts = torch.stack([torch.linalg.vector_norm(value, dim=1).double() for value in named.values()])
    whole: Tensor = torch.linalg.vector_norm(parts, dim=0)
    return whole


def _by_name(problem: Problem, plan: Plan, z: Tensor, residual: Tensor) -> dict[str, Tensor]:
    """Gradients [b, size] of every analysed parameter."""
    cotangents = residual[:, None, :].to(problem.dtype)
    named: dict[str, Tensor] = {}
    for layer, parts in contributions(problem, plan, z, cotangents):
        module = problem.model.get_submodule(layer)
        own = _of_linear_map(module, plan.layers[layer], parts) if isinstance(parts[0], Pair) else parts
        shorts = [short for short in ("weight", "bias") if short in plan.layers[layer]]
        for short, value in zip(shorts, own, strict=True):
            assert isinstance(value, Tensor)  # pairs were turned into rows
            named[f"{layer}.{short}" if layer else short] = value.reshape(len(z), -1)
    if plan.other:
        rows = rows_by_torch_func(problem, plan.other, z, cotangents)[:, 0]
        sizes = [problem.theta[name].numel() for name in plan.other]
        named |= dict(zip(plan.other, torch.split(rows, sizes, dim=1), strict=True))
    return named


def _of_linear_map(module: nn.Module, analysed: tuple[str, ...], parts: list[Pair | Tensor]) -> list[Tensor]:
    """Weight and bias of a layer, whose groups lie side by side along its outputs."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    groups = [part.rows().view(len(part.U), part.D.shape[3], -1) for part in parts if isinstance(part, Pair)]
    rows = torch.cat(groups, dim=1)  # [b, out, in and perhaps one more]
    if "weight" not in analysed:
        return [rows]
    return [rows[:, :, :-1], rows[:, :, -1]] if "bias" in analysed else [rows]
