"""Small trainings by torch's own SGD, example weights included: what an unrolled training is held to."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from upweight import Recording

MOMENTUM, DECAY = 0.9, 1e-2


class Shared(nn.Module):
    """A batch-norm layer that runs twice in a pass and averages over all batches."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(36, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6, momentum=None)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.first(x.flatten(1))))
        return self.head(torch.tanh(self.norm(self.second(x))))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))


def cnn():
    """Batch-norm in training mode, but for one layer, whose statistics stay."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.Tanh(), nn.BatchNorm2d(4).eval(), nn.Flatten(), nn.Linear(64, 3))


MODELS = {"mlp": mlp, "cnn": cnn, "shared": Shared}


@dataclass
class Trained:
    """What was trained on, how, and what came of it."""

    start: nn.Module
    X: Tensor
    y: Tensor
    queries: tuple[Tensor, Tensor]
    batches: list[Tensor]
    rates: list[float]
    momentum: float = MOMENTUM
    decay: float = DECAY
    model: nn.Module = field(init=False)

    def __post_init__(self):
        self.model = self.fit()

    @property
    def n(self):
        return len(self.y)

    def fit(self, eps=None, since=0):
        """Torch's SGD over the batches, every example's loss with a weight of its own from some step on."""
        model = copy.deepcopy(self.start)
        optimizer = torch.optim.SGD(model.parameters(), 1.0, self.momentum, weight_decay=self.decay)
        for number, (rows, rate) in enumerate(zip(self.batches, self.rates, strict=True)):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(self.X[rows]), self.y[rows], reduction="none")
            (losses if eps is None or number < since else eps[rows] * losses).mean().backward()
            optimizer.step()
        return model.eval()

    def losses(self, model):
        with torch.no_grad():
            return nn.functional.cross_entropy(model(self.queries[0]), self.queries[1], reduction="none")

    def slope(self, direction, h=1e-4, since=0):
        """Central difference of the queries' final losses, example weights moved along a direction: -n x it is a score."""
        one = torch.ones_like(direction)
        ends = [self.losses(self.fit(one + sign * h * direction, since)) for sign in (1, -1)]
        return -self.n * (ends[0] - ends[1]) / (2 * h)

    def recording(self, **changed):
        options = {"momentum": self.momentum, "weight_decay": self.decay} | changed
        batches, rates = options.pop("batches", self.batches), options.pop("rates", self.rates)
        return Recording(options.pop("model", self.start), (self.X, self.y), batches, rates, **options)


def trained(name="mlp", n=23, m=5, epochs=5, batch=8, dtype=torch.float64):
    """Some epochs over n examples whose last batch is a smaller one; the rate falls on the way."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = MODELS[name]().to(dtype)
    X, Xq = (torch.randn(count, 1, 6, 6, generator=draw, dtype=torch.float64).to(dtype) for count in (n, m))
    batches = [rows for _ in range(epochs) for rows in torch.randperm(n, generator=draw).split(batch)]
    rates = [0.2] * (len(batches) // 2)
    rates += [0.05] * (len(batches) - len(rates))
    return Trained(start, X, torch.arange(n) % 3, (Xq, torch.arange(m) % 3), batches, rates)
