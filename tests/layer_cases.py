"""Layers and the ways to use them, in small networks."""

import torch
from cases import Problem
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

CLASSES = 3


class Fold(nn.Module):
    """Positions folded into the batch: the layer sees [b T, in], and its rows must still be those of b examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(2, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x.reshape(-1, 2)))
        return self.out(h.reshape(len(x), -1, 3).mean(1))


class TimeFirst(nn.Module):
    """A layer that sees [T, b, in]: its first axis is not that of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(2, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x.reshape(len(x), -1, 2).transpose(0, 1)))
        return self.out(h.mean(0))


class Reused(nn.Module):
    """One layer called twice on different numbers of positions, and once more on the result."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(2, 2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(len(x), -1, 2)
        a, b = torch.tanh(self.inner(h)).mean(1), self.inner(h[:, 0])
        return self.out(self.inner(a + b))


class TiedToEmbedding(nn.Module):
    """The weight of one layer is read functionally by another step, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.linear(torch.tanh(self.inner(x)), self.inner.weight))


class Shared(nn.Module):
    """Two layers hold the very same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Bare(nn.Module):
    """Parameters that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift, self.out = (
            nn.Parameter(torch.ones(4)),
            nn.Parameter(torch.zeros(4)),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x * self.scale + self.shift))


class InPlace(nn.Module):
    """Steps that overwrite what a hook has just seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.softplus(self.first(x))
        g = self.second(h)
        g += h
        g.sigmoid_()
        return self.out(g).mul_(1.5)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.out = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(len(x), -1, 2)
        return self.out(self.attention(h, h, h, need_weights=False)[0].mean(1))


def convolution(**options) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **options), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )


VECTOR, IMAGE, SERIES = (4,), (2, 5, 4), (2, 6)
LAYERS = {
    "conv": (convolution(), IMAGE),
    "conv-stride-dilation": (convolution(stride=(2, 1), dilation=(1, 2), padding=(1, 2)), IMAGE),
    "conv-groups": (convolution(groups=2, bias=False), IMAGE),
    "conv-same": (convolution(padding="same"), IMAGE),
    "conv-reflect": (convolution(padding=1, padding_mode="reflect"), IMAGE),
    "conv-circular": (convolution(padding=(2, 1), padding_mode="circular"), IMAGE),
    "conv-1d": (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)), SERIES),
    "conv-transposed": (
        nn.Sequential(nn.ConvTranspose2d(2, 2, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES)),
        IMAGE,
    ),
    "batch-norm": (nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, CLASSES)), VECTOR),
    "batch-norm-series": (nn.Sequential(nn.BatchNorm1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)), SERIES),
    "layer-norm": (nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, CLASSES)), VECTOR),
    "layer-norm-two-axes": (nn.Sequential(nn.LayerNorm((5, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(40, CLASSES)), IMAGE),
    "layer-norm-positions": (nn.Sequential(nn.LayerNorm(6, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)), SERIES),
    "group-norm": (nn.Sequential(nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)), SERIES),
    "prelu": (nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, CLASSES)), VECTOR),
    "linear-positions": (nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, CLASSES)), SERIES),
    "weight-norm": (nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, CLASSES)), VECTOR),
    "fold": (Fold(), VECTOR),
    "time-first": (TimeFirst(), VECTOR),
    "reused": (Reused(), VECTOR),
    "tied-functionally": (TiedToEmbedding(), VECTOR),
    "shared": (Shared(), VECTOR),
    "bare": (Bare(), VECTOR),
    "in-place": (InPlace(), VECTOR),
    "attention": (Attention(), VECTOR),
}  # fmt: skip


def build(name: str) -> Problem:
    model, shape = LAYERS[name]
    g = torch.Generator().manual_seed(7)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=g))
    X = torch.randn(15, *shape, generator=g, dtype=torch.float64)
    y = torch.arange(15) % CLASSES
    names = tuple(name for name, _ in model.named_parameters())
    return Problem(
        model=model,
        train=(X[:11], y[:11]),
        queries=(X[11:], y[11:]),
        parameters="all",
        names=names,
        num_classes=CLASSES,
    )


NATIVE = [
    "conv",
    "conv-stride-dilation",
    "conv-groups",
    "conv-same",
    "conv-reflect",
    "conv-circular",
    "batch-norm",
    "batch-norm-series",
    "layer-norm",
    "layer-norm-two-axes",
    "layer-norm-positions",
    "linear-positions",
    "reused",
    "in-place",
]
