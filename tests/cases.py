"""The problems that every curvature is held to, listed once; p is small, so that dense float64 algebra is cheap.

A case names what is hard about it. `build(seed, dtype)` draws everything in float64 and then rounds to `dtype`.
Models are left in training mode on purpose: attribution must evaluate them and hand them back as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import reference
import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, its data and the parameters that are analysed."""

    model: nn.Module
    train: Pair
    """Inputs [n, ...] and labels [n]."""
    queries: Pair
    """Inputs [m, ...] and labels [m]."""
    parameters: str | tuple[str, ...]
    """As `attribute` takes them."""
    names: tuple[str, ...]
    """The full names they stand for, written out, so that the references need no resolving."""
    num_classes: int
    weight_decay: float = 0.0

    @property
    def n(self) -> int:
        return len(self.train[1])

    @property
    def m(self) -> int:
        return len(self.queries[1])

    @property
    def p(self) -> int:
        own = dict(self.model.named_parameters())
        return sum(own[name].numel() for name in self.names)

    def to(self, dtype: torch.dtype | str) -> Problem:
        """The same problem, weights and inputs rounded to `dtype` (or moved to a device of that name)."""
        return replace(
            self,
            model=self.model.to(dtype),
            train=(_to(self.train[0], dtype), self.train[1]),
            queries=(_to(self.queries[0], dtype), self.queries[1]),
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem, what it shows, and what may be asked of it."""

    name: str
    make: Callable[[torch.Generator], Problem]
    head: bool = True
    """The analysed parameters are the last linear layer, and nothing else: the loss is convex in them."""
    saturated: bool = False
    """Some probabilities are 0 or 1 to rounding."""
    damping: float = 1e-2
    """A damping that makes the true Hessian positive definite."""
    tags: frozenset[str] = field(default_factory=frozenset)

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
        return self.make(torch.Generator().manual_seed(1000 + seed)).to(dtype)


def _to(inputs: Tensor, dtype: torch.dtype | str) -> Tensor:
    """Inputs that are indices, as those of an embedding, have no precision to change."""
    return inputs if isinstance(dtype, torch.dtype) and not inputs.is_floating_point() else inputs.to(dtype)


def _randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _labels(g: torch.Generator, n: int, classes: int) -> Tensor:
    """Labels [n] in mixed order, each class at least once when n allows it."""
    return torch.randperm(n, generator=g) % classes


def _set_weights(model: nn.Module, g: torch.Generator, scale: float = 1.0) -> nn.Module:
    """Weights drawn from `g` (a module's own initialisation would draw from the global generator)."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(scale * _randn(g, *parameter.shape) / fan_in**0.5)
    return model


def _head_problem(
    g: torch.Generator,
    *,
    classes: int,
    n: int,
    m: int = 7,
    inputs: int = 5,
    units: int = 6,
    bias: bool = True,
    scale: float = 1.0,
) -> Problem:
    """A linear head on a fixed tanh feature map."""
    model = nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, classes, bias=bias))
    return Problem(
        model=_set_weights(model, g, scale),
        train=(_randn(g, n, inputs), _labels(g, n, classes)),
        queries=(_randn(g, m, inputs), _labels(g, m, classes)),
        parameters="head",
        names=("2.weight", "2.bias") if bias else ("2.weight",),
        num_classes=classes,
    )


def _head(g: torch.Generator) -> Problem:
    return _head_problem(g, classes=4, n=40)


def _two_classes(g: torch.Generator) -> Problem:
    return _head_problem(g, classes=2, n=30)


def _no_bias(g: torch.Generator) -> Problem:
    return _head_problem(g, classes=3, n=30, bias=False)


def _weight_only(g: torch.Generator) -> Problem:
    return replace(_head_problem(g, classes=3, n=30), parameters=("2.weight",), names=("2.weight",))


def _bias_only(g: torch.Generator) -> Problem:
    return replace(_head_problem(g, classes=3, n=30), parameters=("2.bias",), names=("2.bias",))


def _few_examples(g: torch.Generator) -> Problem:
    """n = 5 < F + 1 = 9: query gradients leave the row space of the train features."""
    return _head_problem(g, classes=3, n=5, units=8, inputs=8)


def _fewer_than_classes(g: torch.Generator) -> Problem:
    """n = 3 < C = 5."""
    return _head_problem(g, classes=5, n=3, units=6)


def _dead_units(g: torch.Generator) -> Problem:
    """Unit 1 is always 0, unit 3 repeats unit 2, unit 4 is constant like the bias."""
    problem = _head_problem(g, classes=3, n=30)
    first = problem.model[0]
    with torch.no_grad():
        first.weight[1], first.bias[1] = 0.0, 0.0
        first.weight[3], first.bias[3] = first.weight[2], first.bias[2]
        first.weight[4] = 0.0
    return problem


def _absent_class(g: torch.Generator) -> Problem:
    """Class 2 has no train example, but a query."""
    problem = _head_problem(g, classes=4, n=30)
    X, y = problem.train
    return replace(problem, train=(X, torch.where(y == 2, 3, y)))


def _duplicates(g: torch.Generator) -> Problem:
    """Each train example occurs twice, one of them with another label, and two queries are train examples."""
    problem = _head_problem(g, classes=3, n=14)
    X, y = problem.train
    again = y.clone()
    again[0] = (again[0] + 1) % 3
    Xq, yq = problem.queries
    return replace(
        problem,
        train=(torch.cat([X, X]), torch.cat([y, again])),
        queries=(torch.cat([X[:2], Xq[2:]]), torch.cat([y[:2], yq[2:]])),
    )


def _saturated(g: torch.Generator) -> Problem:
    """Margins of both signs, far beyond where float64 tells q from 0 or 1, beside ordinary ones.

    The inputs are the features, pushed along the direction that separates the label from the rest.
    """
    classes, n, m, F = 3, 36, 8, 4
    model = _set_weights(nn.Sequential(nn.Flatten(), nn.Linear(F, classes)), g)
    W = 4.0 * torch.linalg.qr(_randn(g, F, classes)).Q.T  # orthogonal rows: a push of one logit leaves the others
    with torch.no_grad():
        model[1].weight.copy_(W)
    problem = Problem(
        model=model,
        train=(_randn(g, n, F), _labels(g, n, classes)),
        queries=(_randn(g, m, F), _labels(g, m, classes)),
        parameters="head",
        names=("1.weight", "1.bias"),
        num_classes=classes,
    )
    wanted_margins = torch.tensor([40.0, 36.0, 25.0, -25.0, -60.0, -300.0], dtype=torch.float64)
    for X, y in (problem.train, problem.queries):
        for i, wanted in enumerate(wanted_margins):
            z = model[1](X[i]).detach()
            margin = z[y[i]] - torch.logsumexp(z[[c for c in range(classes) if c != y[i]]], 0)
            X[i] += (wanted - margin) * W[y[i]] / (W[y[i]] @ W[y[i]])
    return problem


def _fitted(g: torch.Generator) -> Problem:
    """A head fitted to convergence with L2 on weights and bias: the objective that influence is about."""
    problem = _head_problem(g, classes=3, n=60, m=9)
    l2 = 1e-2
    phi = features(problem, problem.train[0])
    theta = torch.from_numpy(reference.fit_softmax(phi, problem.train[1].numpy(), 3, l2=l2))
    with torch.no_grad():
        problem.model[2].weight.copy_(theta[:, :-1])
        problem.model[2].bias.copy_(theta[:, -1])
    return replace(problem, weight_decay=l2)


def _bare_linear(g: torch.Generator) -> Problem:
    """The model is its own head: a single nn.Linear, whose name among the modules is empty."""
    return Problem(
        model=_set_weights(nn.Linear(6, 3), g),
        train=(_randn(g, 31, 6), _labels(g, 31, 3)),
        queries=(_randn(g, 5, 6), _labels(g, 5, 3)),
        parameters="head",
        names=("weight", "bias"),
        num_classes=3,
    )


def _mlp_head(g: torch.Generator) -> Problem:
    """The head of an image model, behind dropout and batch-norm that must be in evaluation mode."""
    body = [nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5)]
    model = _set_weights(nn.Sequential(*body, nn.Linear(6, 4)), g)
    _set_statistics(model, g)
    return Problem(
        model=model,
        train=(torch.rand(37, 1, 4, 4, generator=g, dtype=torch.float64), _labels(g, 37, 4)),
        queries=(torch.rand(6, 1, 4, 4, generator=g, dtype=torch.float64), _labels(g, 6, 4)),
        parameters="head",
        names=("5.weight", "5.bias"),
        num_classes=4,
    )


def _mlp(g: torch.Generator) -> Problem:
    """All parameters of a tanh network: the true Hessian is indefinite."""
    model = _set_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), g)
    return Problem(
        model=model,
        train=(_randn(g, 29, 4), _labels(g, 29, 3)),
        queries=(_randn(g, 6, 4), _labels(g, 6, 3)),
        parameters="all",
        names=tuple(name for name, _ in model.named_parameters()),
        num_classes=3,
    )


def _some_layers(g: torch.Generator) -> Problem:
    """A middle layer's weight and the head's bias, named in an order that is not the model's."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    return Problem(
        model=_set_weights(model, g),
        train=(_randn(g, 23, 4), _labels(g, 23, 3)),
        queries=(_randn(g, 5, 4), _labels(g, 5, 3)),
        parameters=("4.bias", "2.weight"),
        names=("4.bias", "2.weight"),
        num_classes=3,
    )


def _conv(g: torch.Generator) -> Problem:
    """A convolution with stride, batch-norm (running statistics, trained scale and shift), pooling and a head."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )
    _set_weights(model, g)
    _set_statistics(model, g)
    return Problem(
        model=model,
        train=(_randn(g, 21, 1, 5, 5), _labels(g, 21, 3)),
        queries=(_randn(g, 5, 1, 5, 5), _labels(g, 5, 3)),
        parameters="all",
        names=tuple(name for name, _ in model.named_parameters()),
        num_classes=3,
    )


class TiedNetwork(nn.Module):
    """One hidden layer that is applied twice: its gradient is the sum over both uses."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.tanh(self.hidden(x)))))


def _tied(g: torch.Generator) -> Problem:
    model = _set_weights(TiedNetwork(), g)
    return Problem(
        model=model,
        train=(_randn(g, 25, 4), _labels(g, 25, 3)),
        queries=(_randn(g, 5, 4), _labels(g, 5, 3)),
        parameters="all",
        names=("hidden.weight", "hidden.bias", "out.weight", "out.bias"),
        num_classes=3,
    )


def _tokens(g: torch.Generator) -> Problem:
    """Inputs of whole numbers: an embedding and a head, all parameters; two of six tokens never occur."""
    model = _set_weights(nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Tanh(), nn.Linear(9, 3)), g)
    return Problem(
        model=model,
        train=(torch.randint(4, (26, 3), generator=g), _labels(g, 26, 3)),
        queries=(torch.randint(5, (5, 3), generator=g), _labels(g, 5, 3)),
        parameters="all",
        names=tuple(name for name, _ in model.named_parameters()),
        num_classes=3,
    )


def _set_statistics(model: nn.Module, g: torch.Generator) -> None:
    """Running statistics that differ from those of any batch, so that a wrong mode cannot go unseen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.copy_(_randn(g, module.num_features))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=g, dtype=torch.float64))


def features(problem: Problem, inputs: Tensor) -> np.ndarray:
    """Input of the head [N, F]: what the model's modules before the last one make of each example."""
    if isinstance(problem.model, nn.Linear):
        return inputs.double().numpy()
    net = reference.Network(problem)
    with torch.no_grad():
        return np.array([net.model[:-1](reference.widened(x)[None])[0].numpy() for x in inputs])


CASES = (
    Case(name="head", make=_head),
    Case(name="two-classes", make=_two_classes),
    Case(name="no-bias", make=_no_bias),
    Case(name="weight-only", make=_weight_only),
    Case(name="bias-only", make=_bias_only),
    Case(name="few-examples", make=_few_examples),
    Case(name="fewer-than-classes", make=_fewer_than_classes),
    Case(name="dead-units", make=_dead_units),
    Case(name="absent-class", make=_absent_class),
    Case(name="duplicates", make=_duplicates),
    Case(name="saturated", make=_saturated, saturated=True),
    Case(name="fitted", make=_fitted),
    Case(name="bare-linear", make=_bare_linear),
    Case(name="image-head", make=_mlp_head),
    Case(name="mlp", make=_mlp, head=False, damping=1.0),
    Case(name="some-layers", make=_some_layers, head=False, damping=1.0),
    Case(name="conv", make=_conv, head=False, damping=1.0),
    Case(name="tied", make=_tied, head=False, damping=1.0),
    Case(name="tokens", make=_tokens, head=False, damping=1.0),
)
HEAD_CASES = tuple(case for case in CASES if case.head)
BY_NAME = {case.name: case for case in CASES}
