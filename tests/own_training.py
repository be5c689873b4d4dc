"""Functions of a user's that train, where worker processes find them too."""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

N, M = 24, 6
_draw = np.random.default_rng(0)
X, Y = torch.from_numpy(_draw.standard_normal((N, 3))).float(), torch.arange(N) % 2
XQ, YQ = torch.from_numpy(_draw.standard_normal((M, 3))).float(), torch.arange(M) % 2


def train(kept, labels, seed, model=None, rate=0.3):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2) if model is None else model()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    rows = np.flatnonzero(kept)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(X[rows]), torch.from_numpy(labels[rows])).backward()
        optimizer.step()
    return model


def slow(kept, labels, seed):
    time.sleep(0.05)
    return train(kept, labels, seed)


def fragile(kept, labels, seed):
    """Diverges where example 0 is kept and the seed is even."""
    model = train(kept, labels, seed)
    if kept[0] and seed % 2 == 0:
        model.weight.data[0, 0] = float("nan")
    return model


def failing(kept, labels, seed):
    if not kept[5]:
        raise RuntimeError("example 5 is missing")
    return train(kept, labels, seed)
