"""K-FAC and EK-FAC by loops, float64: over examples, labels, positions of an image; no code is shared with influence/."""

from __future__ import annotations

import numpy as np
import reference
import torch
from cases import Problem
from torch import nn

Array = np.ndarray


def kronecker_curvature(problem: Problem, kind: str, others: str = "dense", rows: str = "logits") -> Array:
    """The approximate mean curvature [p, p]: zero between layers, Kronecker factors or their eigenvalues within them.

    The rows are the gradients of the losses at every label, weighted by the network's own probabilities: their products are
    the Gauss-Newton matrix. rows="label": at the true label alone, the empirical Fisher matrix.
    """
    net = reference.Network(problem)
    X, y = problem.train
    n = len(y)
    weighted = []  # (example, weight, its gradient over all parameters, residual)
    for i in range(n):
        z = net.logits(net.theta, X[i]).detach().numpy()
        J = reference.jacobian(net, X[i])
        q = reference.probabilities(z)
        for label in range(len(z)) if rows == "logits" else [int(y[i])]:
            r = reference.residual(z, label)
            weighted.append((i, q[label] if rows == "logits" else 1.0, J.T @ r, r))
    H = np.zeros((len(net.theta), len(net.theta)))
    for layer, place in layer_places(net).items():
        module = net.model.get_submodule(layer)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            at = np.concatenate([p.ravel() for p in place])
            block = sum(w * np.outer(g[at], g[at]) for _, w, g, _ in weighted) / n
            if others != "skip":
                H[np.ix_(at, at)] = block if others == "dense" else np.diag(np.diag(block))
            continue
        groups = getattr(module, "groups", 1)
        for group in range(groups):
            own = [np.split(p, groups)[group] for p in place]
            at = np.concatenate([p.reshape(len(p), -1) for p in own], axis=1)  # [out, in and perhaps one more]
            gamma, omega = factors(net, layer, problem, weighted, group, at.shape)
            if kind == "kfac":
                block = np.kron(gamma, omega)
            else:
                V_out, V_in = np.linalg.eigh(gamma)[1], np.linalg.eigh(omega)[1]
                lam = sum(w * (V_out.T @ g[at] @ V_in) ** 2 for _, w, g, _ in weighted) / n
                V = np.kron(V_out, V_in)
                block = V @ np.diag(lam.ravel()) @ V.T
            H[np.ix_(at.ravel(), at.ravel())] = block
    return H


def layer_places(net: reference.Network) -> dict[str, list[Array]]:
    """Layer -> where its weight and bias lie in theta, each in its own shape."""
    places: dict[str, dict[str, Array]] = {}
    start = 0
    for name, shape in zip(net.names, net.shapes, strict=True):
        layer, _, short = name.rpartition(".")
        places.setdefault(layer, {})[short] = np.arange(start, start + shape.numel()).reshape(shape)
        start += shape.numel()
    return {
        layer: [own[short] for short in ("weight", "bias", *sorted(set(own) - {"weight", "bias"})) if short in own]
        for layer, own in places.items()
    }


def factors(
    net: reference.Network, layer: str, problem: Problem, weighted: list, group: int, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Gamma [out, out], the mean over positions, and Omega [in, in], the sum over positions; means over examples."""
    module = net.model.get_submodule(layer)
    names = [name for name in net.names if name.rpartition(".")[0] == layer]
    outs, ins = shape
    gamma, omega = np.zeros((outs, outs)), np.zeros((ins, ins))
    n = len(problem.train[1])
    for i, x in enumerate(problem.train[0]):
        calls, z = run_and_catch(net, module, x)
        inputs = []
        for call_in, call_out in calls:
            inputs += patches(module, call_in, call_out, group)
        for u in inputs:
            own = [u] if f"{layer}.weight".lstrip(".") in names else []
            own += [np.ones(1)] if f"{layer}.bias".lstrip(".") in names else []
            omega += np.outer(np.concatenate(own), np.concatenate(own)) / n
        for j, w, _, r in weighted:
            if j != i:
                continue
            for g in torch.autograd.grad(z @ torch.from_numpy(r), [output for _, output in calls], retain_graph=True):
                for d in positions(module, g.numpy(), group, outs):
                    gamma += w * np.outer(d, d) / n / len(inputs)
    return gamma, omega


def run_and_catch(
    net: reference.Network, module: nn.Module, x: torch.Tensor
) -> tuple[list[tuple[Array, torch.Tensor]], torch.Tensor]:
    """Input and output of every call of a layer for one example, and the logits."""
    calls: list[tuple[Array, torch.Tensor]] = []
    handle = module.register_forward_hook(lambda m, inputs, output: calls.append((inputs[0].detach().numpy(), output)))
    logits = net.model(reference.widened(x)[None])[0]
    handle.remove()
    return calls, logits


def patches(module: nn.Module, x: Array, output: torch.Tensor, group: int) -> list[Array]:
    """What the weight of a layer is multiplied with, position by position."""
    if isinstance(module, nn.Linear):
        return list(x.reshape(-1, x.shape[-1]))
    (ph, pw), (sh, sw), (dh, dw), (kh, kw) = module.padding, module.stride, module.dilation, module.kernel_size
    padded = np.pad(x[0], ((0, 0), (ph, ph), (pw, pw)))
    channels = len(padded) // module.groups
    padded = padded[group * channels : (group + 1) * channels]
    found = []
    for a in range(output.shape[2]):
        for b in range(output.shape[3]):
            rows = [a * sh + k * dh for k in range(kh)]
            columns = [b * sw + k * dw for k in range(kw)]
            found.append(padded[:, rows][:, :, columns].ravel())
    return found


def positions(module: nn.Module, g: Array, group: int, outs: int) -> list[Array]:
    """Gradients at the output of a layer, position by position."""
    if isinstance(module, nn.Linear):
        return list(g.reshape(-1, g.shape[-1]))
    g = g[0, group * outs : (group + 1) * outs]
    return [g[:, a, b] for a in range(g.shape[1]) for b in range(g.shape[2])]
