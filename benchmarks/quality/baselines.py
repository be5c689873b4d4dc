"""Scores that cost next to nothing: what a method must beat."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..methods import Run, whole
from ..problems import Problem


def _baseline(compute):
    def prepare(problem: Problem) -> Run:
        return whole(lambda _: compute(problem), 0.0)

    return prepare


@torch.no_grad()
def _residuals(problem: Problem, X: Tensor, y: Tensor) -> Tensor:
    q = problem.model(X).softmax(1)
    return q - nn.functional.one_hot(y, q.shape[1])


def features(model: nn.Module, X: Tensor) -> Tensor:
    """What enters the last linear layer."""
    caught: list[Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        model(X)
    handle.remove()
    return caught[0].flatten(1)


@_baseline
def residual_product(problem: Problem) -> np.ndarray:
    """Label and confidence, no features."""
    r, rq = (_residuals(problem, *side) for side in (problem.train, problem.queries))
    return (rq @ r.T).numpy()


@_baseline
def cosine_of_features(problem: Problem) -> np.ndarray:
    f, fq = (nn.functional.normalize(features(problem.model, X), dim=1) for X in (problem.X, problem.Xq))
    return (fq @ f.T).numpy()


@_baseline
def nearest_pixels(problem: Problem) -> np.ndarray:
    """Minus the distance of what enters the network."""
    return -torch.cdist(problem.Xq.flatten(1), problem.X.flatten(1)).numpy()


@_baseline
def random_scores(problem: Problem) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(problem.yq), len(problem.y)))
