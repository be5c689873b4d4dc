"""Running statistics of batch-norm as functions of the weights: torch updates them in place, where no derivative passes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What a forward pass makes of a running statistic: decay x what it was + gain."""

    decay: float
    gain: Tensor
    """With the graph that leads back to the weights."""

    def then(self, decay: float, gain: Tensor) -> Update:
        """This and another after it, where a layer runs twice."""
        return Update(self.decay * decay, decay * self.gain + gain)


@contextmanager
def followed(model: nn.Module) -> Generator[dict[str, Update]]:
    """Catch what the batch-norm layers in training mode make of their running statistics.

    Args:
        model: The network; it may be called with any weights in place of its own.

    Yields:
        Updates by the name of the buffer, filled as the network runs.
    """
    caught: dict[str, Update] = {}
    handles = [
        module.register_forward_pre_hook(partial(_catch, caught, f"{name}." if name else ""))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _catch(caught: dict[str, Update], prefix: str, module: _BatchNorm, inputs: tuple[Any, ...]) -> None:
    if not module.training:
        return
    x: Tensor = inputs[0]
    assert module.num_batches_tracked is not None  # it tracks
    share = 1 / (float(module.num_batches_tracked) + 1) if module.momentum is None else module.momentum
    axes = [axis for axis in range(x.ndim) if axis != 1]
    for name, gain in (("running_mean", x.mean(axes)), ("running_var", x.var(axes))):
        new = Update(1 - share, share * gain)
        before = caught.get(prefix + name)
        caught[prefix + name] = new if before is None else before.then(new.decay, new.gain)


@contextmanager
def applied(model: nn.Module, statistics: Mapping[str, Tensor]) -> Generator[None]:
    """Let the batch-norm layers of a network in evaluation mode compute with statistics that gradients can be asked of.

    Args:
        model: The network, in evaluation mode; it may be called with any weights in place of its own.
        statistics: Running means and variances by the name of the buffer.

    Yields:
        Nothing.
    """
    handles = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, _BatchNorm) and f"{prefix}running_mean" in statistics:
            mean, var = (statistics[f"{prefix}running_{word}"] for word in ("mean", "var"))
            handles.append(module.register_forward_hook(partial(_normalise, mean, var)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _normalise(mean: Tensor, var: Tensor, module: _BatchNorm, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
    x: Tensor = inputs[0]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    y = (x - mean.view(shape)) * (var + module.eps).rsqrt().view(shape)
    if module.affine:
        y = y * module.weight.view(shape) + module.bias.view(shape)
    return y
