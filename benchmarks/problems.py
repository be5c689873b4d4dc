"""The problems: a model, train examples, queries and a damping, saved to a folder that every method's own process loads.

Weights and inputs are float32 numbers, so that single and double precision start from the same values. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a problem is made from."""

    kind: str
    """One of head, cnn and resnet; for the quality benchmarks also mlp, and tail: the end of a fine-tuned network."""
    n: int
    m: int
    C: int = 10
    F: int = 0
    """Features, for a head."""
    width: int = 16
    """Channels of the first layer, for a CNN."""
    blocks: int = 1
    """Analysed residual blocks, for a ResNet."""
    damping: float = 1e-3

    @property
    def name(self) -> str:
        own = {"head": f"F{self.F}", "cnn": f"w{self.width}", "resnet": f"k{self.blocks}"}[self.kind]
        return f"{self.kind}-{own}-n{self.n}-m{self.m}-C{self.C}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Stochastic gradient descent with momentum 0.9."""

    epochs: int
    batch: int = 50
    rate: float = 0.05
    weight_decay: float = 1e-3


CNN_RECIPE = Recipe(epochs=30)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A loaded problem."""

    spec: Spec
    model: nn.Module
    X: Tensor
    y: Tensor
    Xq: Tensor
    yq: Tensor
    weight_decay: float | None = None
    """Of the training, where methods are told."""

    @property
    def parameters(self) -> str:
        """What upweight is asked to analyse in `model`."""
        return {"head": "head", "resnet": f"blocks:{self.spec.blocks}"}.get(self.spec.kind, "all")

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.X, self.y

    @property
    def queries(self) -> tuple[Tensor, Tensor]:
        return self.Xq, self.yq

    def tail(self) -> Problem:
        """The same problem with the frozen part run once: a model of which every parameter is analysed, and its inputs."""
        if self.spec.kind != "resnet":
            return self
        frozen, tail = split_resnet(self.model, self.spec.blocks)
        with torch.no_grad():
            X, Xq = (torch.cat([frozen(part) for part in data.split(64)]) for data in (self.X, self.Xq))
        return replace(self, model=tail, X=X, Xq=Xq)

    def at(self, damping: float) -> Problem:
        """The same problem at another damping."""
        return replace(self, spec=replace(self.spec, damping=damping))

    def to(self, dtype: torch.dtype) -> Problem:
        return replace(self, model=copy.deepcopy(self.model).to(dtype), X=self.X.to(dtype), Xq=self.Xq.to(dtype))


def split_resnet(model: nn.Module, blocks: int) -> tuple[nn.Module, nn.Module]:
    """Stem and first blocks; last blocks, pooling and head."""
    own = dict(model.named_children())
    stem = [own[name] for name in ("conv1", "bn1", "relu", "maxpool")]
    body = [(f"layer{i}_{j}", block) for i in range(1, 5) for j, block in enumerate(own[f"layer{i}"])]
    frozen = nn.Sequential(*stem, *(block for _, block in body[:-blocks]))
    tail = nn.Sequential(
        OrderedDict([*body[-blocks:], ("pool", own["avgpool"]), ("flat", nn.Flatten()), ("fc", own["fc"])])
    )
    return frozen.eval(), tail.eval()


def make_model(spec: Spec) -> nn.Module:
    """The network, with whatever weights its constructor draws."""
    if spec.kind == "head":
        return nn.Sequential(OrderedDict(head=nn.Linear(spec.F, spec.C)))
    if spec.kind == "mlp":
        return nn.Sequential(nn.Linear(spec.F, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, spec.C))
    if spec.kind == "cnn":
        w = spec.width
        return nn.Sequential(
            nn.Conv2d(1, w, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(w, 2 * w, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * w, 3 * w),
            nn.ReLU(),
            nn.Linear(3 * w, spec.C),
        )
    from torchvision.models import resnet18

    model = resnet18(num_classes=spec.C)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # some of the tools hook what an in-place ReLU would overwrite
    return model


def build(spec: Spec) -> Problem:
    """Draw the data and fit the model; the same on every call."""
    torch.manual_seed(0)
    problem = {"head": _head, "cnn": _cnn, "resnet": _resnet}[spec.kind](spec)
    problem.model.eval()
    return problem


def save(problem: Problem, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(asdict(problem.spec)))
    data = {"X": problem.X, "y": problem.y, "Xq": problem.Xq, "yq": problem.yq}
    torch.save({"data": data, "model": problem.model.state_dict()}, folder / "problem.pt")


def load(folder: Path) -> Problem:
    spec = Spec(**json.loads((folder / "spec.json").read_text()))
    stored = torch.load(folder / "problem.pt", weights_only=True)
    model = make_model(spec)
    model.load_state_dict(stored["model"])
    return Problem(spec, model.eval(), *(stored["data"][name] for name in ("X", "y", "Xq", "yq")))


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order] / 16, labels[order]


def _head(spec: Spec) -> Problem:
    """Random ReLU features of noisy digits (F = 64: a random rotation of them), and the softmax regression that fits them."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    images, labels = digits()
    if spec.C < 10:
        keep = labels < spec.C
        images, labels = images[keep], labels[keep]
    rows = rng.integers(len(labels), size=spec.n + spec.m)
    y = labels[rows]
    y = (
        y + 10 * rng.integers(max(1, spec.C // 10), size=len(y)) if spec.C > 10 else y
    )  # more classes: copies, shifted below
    shift = rng.normal(0, 0.25, (spec.C, 64))
    x = images[rows] + rng.normal(0, 0.25, (len(rows), 64)) + (shift[y] if spec.C > 10 else 0)
    W = rng.normal(0, 1, (64, spec.F)) / 4
    features = np.maximum(x @ W + rng.normal(0, 0.5, spec.F), 0) if spec.F > 64 else x @ W
    features = (features - features.mean(0)) / np.sqrt(features.var() * spec.F) * 4
    phi = features.astype(np.float32)
    fit = LogisticRegression(C=1 / (spec.n * spec.damping), max_iter=300).fit(
        phi[: spec.n].astype(np.float64), y[: spec.n]
    )
    model = make_model(spec)
    weight, bias = fit.coef_, fit.intercept_
    if spec.C == 2:
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
    X, labels_ = torch.from_numpy(phi), torch.from_numpy(y).long()
    return Problem(spec, model, X[: spec.n], labels_[: spec.n], X[spec.n :], labels_[spec.n :])


def digit_images(spec: Spec) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    if spec.n + spec.m > len(labels):
        raise ValueError(f"digits has {len(labels)} images, {spec.n + spec.m} are wanted")
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8)[: spec.n + spec.m]
    return x, torch.from_numpy(labels).long()[: spec.n + spec.m]


def _cnn(spec: Spec) -> Problem:
    X, y = digit_images(spec)
    model = make_model(spec)
    n = spec.n
    descend(model, X[:n], y[:n], CNN_RECIPE)
    return Problem(spec, model, X[:n], y[:n], X[n:], y[n:])


def descend(model: nn.Module, X: Tensor, y: Tensor, recipe: Recipe, kept: Tensor | None = None) -> None:
    """Train on the kept examples, batches in the order that an epoch of the whole set has."""
    options = {"lr": recipe.rate, "momentum": 0.9, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(y))
        for rows in (order if kept is None else order[kept[order]]).split(recipe.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()


def _resnet(spec: Spec) -> Problem:
    """Random weights; the batch statistics are those of the images."""
    X, y = digit_images(spec)
    X = nn.functional.interpolate(X, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    model = make_model(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches that follow
    model.train()
    with torch.no_grad():
        model(X[: min(spec.n, 100)])
    return Problem(spec, model, X[: spec.n], y[: spec.n], X[spec.n :], y[spec.n :])
