"""Whether the same training gives the same weights, and what is at fault where it does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor, nn

from .device import seeded
from .errors import NonDeterministicError
from .refit import Labels, Trainer

_GENERATORS: dict[str, Callable[[], bytes]] = {
    "torch": lambda: torch.get_rng_state().numpy().tobytes(),
    "numpy": lambda: repr(np.random.get_state()).encode() + np.random.get_state()[1].tobytes(),  # type: ignore[index]
    "random": lambda: repr(random.getstate()).encode(),
}


def require_deterministic(trainer: Trainer, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> None:
    """Train twice on the same examples with the same seed, and refuse a trainer whose results differ.

    Args:
        trainer: What trains; as much of it as tells is done.
        kept: Examples to train on.
        labels: Of all examples.
        seed: Of both.

    Raises:
        NonDeterministicError: The weights differ; the message names the first, and the layer or the setting at fault.
    """
    one = trainer.rehearse(kept, labels, seed)
    after_one = {name: state() for name, state in _GENERATORS.items()}
    other = trainer.rehearse(kept, labels, seed)
    after_other = {name: state() for name, state in _GENERATORS.items()}
    differing = _first_difference(one, other)
    if differing is None:
        return
    unseeded = [name for name in _GENERATORS if after_one[name] != after_other[name]]
    raise NonDeterministicError(
        f"Training twice on the same examples with seed {seed} gave different weights, first in {differing}: "
        f"{_fault(one, trainer.probe(), unseeded)}"
    )


def _first_difference(one: nn.Module, other: nn.Module) -> str | None:
    first, second = one.state_dict(), other.state_dict()
    if first.keys() != second.keys():
        return next(iter(sorted(first.keys() ^ second.keys())))
    return next((name for name, value in first.items() if not _same(value, second[name])), None)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _fault(model: nn.Module, x: Tensor, unseeded: list[str]) -> str:
    """The sentence about what is to blame, the surest finding first."""
    layer = unsteady_layer(model, x)
    if layer is not None:
        return (
            f"the layer {layer} gives different outputs for the same batch, whatever the seed; let it draw from torch's "
            "global generator, or take it out."
        )
    if unseeded:
        calls = {"torch": "torch.manual_seed", "numpy": "np.random.seed", "random": "random.seed"}
        return (
            f"it draws from the global generator of {' and '.join(unseeded)}, which it does not seed; begin it with "
            f"{' and '.join(f'{calls[name]}(seed)' for name in unseeded)}."
        )
    if any(parameter.is_cuda for parameter in model.parameters()):
        return (
            "the device is a GPU, whose kernels need not add in the same order; call "
            "torch.use_deterministic_algorithms(True) before training, or train on the CPU."
        )
    return (
        "no layer is to blame, so the order of the batches or a change made to the inputs comes from a generator of its own; "
        "seed it with the seed that fit is given."
    )


def unsteady_layer(model: nn.Module, x: Tensor) -> str | None:
    """The first layer that, in training mode, with torch's generator seeded alike, maps one batch to two outputs or gradients.

    Args:
        model: A network; left as it was found.
        x: Inputs for it.

    Returns:
        Name and kind of the layer; None where every layer is steady.
    """
    modes = {module: module.training for module in model.modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        model.train()
        passes = []
        for _ in range(2):
            model.load_state_dict(state)  # batch-norm statistics move in training mode
            with seeded("determinism", device=device):
                passes.append(_trace(model, x.to(device)))
    finally:
        model.load_state_dict(state)
        for module, mode in modes.items():
            module.training = mode
    kinds = dict(model.named_modules())
    for (name, one), (_, other) in zip(*passes, strict=False):
        if not _same(one, other):
            return f"{name or 'at the root'} ({type(kinds[name]).__name__})"
    return None


def _trace(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    """Outputs of every layer in the order in which they are met, then the gradients of these in the order of going back."""
    outputs: list[tuple[str, Tensor]] = []
    gradients: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                _keep(outputs, name, output)
                if output.requires_grad:
                    output.register_hook(partial(_keep, gradients, name))  # type: ignore[no-untyped-call]

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        with torch.enable_grad():
            out = model(x)
        if out.requires_grad:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return outputs + gradients


def _keep(kept: list[tuple[str, Tensor]], name: str, value: Tensor) -> None:
    kept.append((name, value.detach().clone()))
