"""Weights of a fixed spectral norm in training (NEFT of Chen et al., CARTL), and plain weights again afterwards."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

from .device import generator

_FIRST_ITERATIONS = 15  # the weights met first are as good as those of torch's own spectral norm
_TINY = 1e-12


class Scaled(nn.Module):
    """beta W / sigma(W), W as a matrix [out, rest] and sigma its largest singular value by power iteration.

    One iteration is made each time the weight is asked for in training mode, none in evaluation mode. The singular
    vectors are constants of the gradient, as in Miyato et al. 2018.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, beta: float, draw: torch.Generator) -> None:
        super().__init__()
        self.beta = beta
        W = weight.detach().flatten(1)
        self.register_buffer("u", torch.zeros(len(W)).to(W))
        self.register_buffer("v", normalize(torch.randn(W.shape[1], generator=draw), dim=0, eps=_TINY).to(W))
        for _ in range(_FIRST_ITERATIONS):
            self._iterate(W)

    @torch.no_grad()
    def _iterate(self, W: Float[Tensor, "o r"]) -> None:
        self.u = normalize(W @ self.v, dim=0, eps=_TINY)
        self.v = normalize(self.u @ W, dim=0, eps=_TINY)

    def forward(self, weight: Float[Tensor, "o ..."]) -> Float[Tensor, "o ..."]:
        """The weight with spectral norm beta, as well as the iteration knows it."""
        W = weight.flatten(1)
        if self.training:
            self._iterate(W)
        sigma = (self.u @ W @ self.v).clamp_min(_TINY)
        return self.beta * weight / sigma


def scale_weights(module: nn.Module, beta: float, seed: int) -> None:
    """Let every convolution and linear layer use its weight scaled to the spectral norm beta; biases stay as they are.

    Args:
        module: Changed in place; what is trained from now on are the weights before scaling.
        beta: The spectral norm.
        seed: Decides where the power iterations start.
    """
    draw = generator("power iteration", seed)
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(layer, "weight", Scaled(layer.weight, beta, draw))


def fold_weights(module: nn.Module) -> None:
    """Make the scaled weights plain ones: the network computes what it computed, in evaluation mode, and no longer knows how.

    Args:
        module: What `scale_weights` changed, or any other; changed in place, and left in evaluation mode.
    """
    module.eval()
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
