"""What the tests of curvatures of low rank share: matrices of known eigenvalues, and a network with many small ones."""

from __future__ import annotations

import numpy as np
import torch
from cases import Problem
from torch import nn
from upweight import attribute


def spd(p, eigenvalues):
    """A symmetric matrix with known eigenvalues."""
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(p, p)))[0]
    values = np.zeros(p)
    values[: len(eigenvalues)] = eigenvalues
    return torch.from_numpy((Q * values) @ Q.T)


def score(problem, curvature, **options):
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


def digits_like(n=120, m=12):
    """A trained little network whose curvature falls off slowly: p = 515, rank 240 at most."""
    g = torch.Generator().manual_seed(4)
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    X = torch.randn(n + m, 20, generator=g, dtype=torch.float64)
    y = (X @ torch.randn(20, 3, generator=g, dtype=torch.float64)).argmax(1)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=g, dtype=torch.float64) / 4)
    names = tuple(name for name, _ in model.named_parameters())
    return Problem(
        model=model, train=(X[:n], y[:n]), queries=(X[n:], y[n:]), parameters="all", names=names, num_classes=3
    )
