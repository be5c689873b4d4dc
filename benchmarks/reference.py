"""The scores that every method is held to: dense float64 algebra from the definitions, sharing no code with the package.

scores[t, i] = + g_t^T (H + damping I)^-1 g_i,   H the mean Gauss-Newton matrix (for a linear head: the Hessian)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from .problems import Problem

LARGE = 300_000  # parameters of one convolution above which its Jacobian is formed in parts


def scores(problem: Problem) -> np.ndarray:
    """Exact scores [m, n]."""
    problem = problem.tail().to(torch.float64)
    return head_scores(problem) if problem.spec.kind == "head" else network_scores(problem)


def softmax_terms(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals [n, C], whose entry at the label is minus the sum of the others, and S [n, C, C]."""
    q = logits.softmax(1)
    others = q.scatter(1, y[:, None], 0)
    r = others.scatter(1, y[:, None], -others.sum(1, keepdim=True))
    return r, torch.diag_embed(q) - q[:, :, None] * q[:, None, :]


def head_scores(problem: Problem) -> np.ndarray:
    """From the whole Hessian of weight and bias, [C (F+1), C (F+1)]."""
    n, C = len(problem.y), problem.spec.C
    with torch.no_grad():
        r, S = softmax_terms(problem.model(problem.X), problem.y)
        rq, _ = softmax_terms(problem.model(problem.Xq), problem.yq)
    phi, phiq = (np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1) for x in (problem.X, problem.Xq))
    D = phi.shape[1]
    H = np.empty((C * D, C * D))
    for a in range(C):
        for b in range(a + 1):
            block = phi.T @ (S[:, a, b].numpy()[:, None] * phi) / n
            H[a * D : (a + 1) * D, b * D : (b + 1) * D] = block  # block rows below the diagonal suffice
    H[np.diag_indices(C * D)] += problem.spec.damping
    factor = scipy.linalg.cho_factor(H.T, lower=False, overwrite_a=True, check_finite=False)
    Gq = np.einsum("tc,tf->cft", rq.numpy(), phiq).reshape(C * D, -1)
    # what lies above the blocks was never written, and may hold anything
    solved = scipy.linalg.cho_solve(factor, Gq, overwrite_b=True, check_finite=False).reshape(C, D, -1)
    out = np.zeros((len(problem.yq), n))
    for c in range(C):
        out += (solved[c].T @ phi.T) * r[:, c].numpy()
    return out


def network_scores(problem: Problem) -> np.ndarray:
    """From K = J J^T over all logits, by J (J^T S J / n + d I)^-1 = (K S / n + d I)^-1 J: a square system of order n C."""
    n, m, C, d = len(problem.y), len(problem.yq), problem.spec.C, problem.spec.damping
    with torch.no_grad():
        r, S = softmax_terms(problem.model(problem.X), problem.y)
        rq, _ = softmax_terms(problem.model(problem.Xq), problem.yq)
    K, M = np.zeros((n * C, n * C)), np.zeros((n * C, m))
    eye = torch.eye(C, dtype=torch.float64)[None].expand(n, -1, -1)
    train = pulled_back(problem.model, problem.X, eye)
    queries = pulled_back(problem.model, problem.Xq, rq[:, None, :])
    for J, G in zip(train, queries, strict=True):  # [n, C, part], [m, 1, part]
        rows = J.reshape(n * C, -1).numpy()
        K += rows @ rows.T
        M += rows @ G[:, 0].numpy().T
    system = (K.reshape(n * C, n, C).transpose(1, 0, 2) @ (S.numpy() / n)).transpose(1, 0, 2).reshape(n * C, n * C)
    system[np.diag_indices(n * C)] += d
    X = scipy.linalg.solve(system, M, overwrite_a=True, overwrite_b=True, check_finite=False)
    return np.einsum("nc,ncm->mn", r.numpy(), X.reshape(n, C, m))


def pulled_back(model: nn.Module, X: Tensor, cotangents: Tensor, large: int = LARGE) -> Iterator[Tensor]:
    """Cotangents [b, R, C] of the logits, pulled back to the parameters: [b, R, part], some parameters at a time."""
    small = [parameter for parameter in model.parameters() if parameter.numel() <= large]
    yield _one_by_one(model, small, X, cotangents)
    for name, parameter in model.named_parameters():
        if parameter.numel() > large:
            owner = model.get_submodule(name.rpartition(".")[0])
            if not isinstance(owner, nn.Conv2d):
                raise ValueError(f"{name} has {parameter.numel()} entries; only convolutions are cut into parts")
            yield from _convolution(model, owner, X, cotangents, large)


def _one_by_one(model: nn.Module, parameters: list[nn.Parameter], X: Tensor, cotangents: Tensor) -> Tensor:
    """Plain reverse differentiation of one example and one cotangent at a time."""
    out = torch.empty(*cotangents.shape[:2], sum(parameter.numel() for parameter in parameters), dtype=X.dtype)
    for i, x in enumerate(X):
        logits = model(x[None])[0]
        for row, cotangent in enumerate(cotangents[i]):
            parts = torch.autograd.grad(logits, parameters, cotangent, retain_graph=True)
            out[i, row] = torch.cat([part.flatten() for part in parts])
    return out


def _convolution(model: nn.Module, layer: nn.Conv2d, X: Tensor, cotangents: Tensor, large: int) -> Iterator[Tensor]:
    """A large convolution without groups, some output channels at a time: sum over positions of output gradient x patch."""
    caught: dict[str, Tensor] = {}

    def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        caught["in"], caught["out"] = inputs[0].detach(), output

    handle = layer.register_forward_hook(catch)
    logits = model(X)
    handle.remove()
    rows = cotangents.unbind(1)
    D = [torch.autograd.grad(logits, caught["out"], row, retain_graph=True)[0].flatten(2) for row in rows]
    D = torch.stack(D, 1)  # [b, R, out channels, positions]
    U = nn.functional.unfold(
        caught["in"], layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )  # [b, in, positions]
    step = max(1, large // U.shape[1])
    for start in range(0, D.shape[2], step):
        part = D[:, :, start : start + step].flatten(1, 2) @ U.mT  # [b, R * channels, in]
        yield part.view(len(X), len(rows), -1)
