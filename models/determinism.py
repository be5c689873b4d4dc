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
    if layer is not None and not _on_gpu(model):
        return (
            f"the layer {layer} for the same batch, whatever the seed; let it draw from torch's global generator, or take it "
            "out."
        )
    if unseeded:
        calls = {"torch": "torch.manual_seed", "numpy": "np.random.seed", "random": "random.seed"}
        return (
            f"it draws from the global generator of {' and '.join(unseeded)}, which it does not seed; begin it with "
            f"{' and '.join(f'{calls[name]}(seed)' for name in unseeded)}."
        )
    if _on_gpu(model):
        where = "" if layer is None else f" (the layer {layer} for the same batch)"
        return (
            f"the device is a GPU, whose kernels need not add in the same order{where}; call "
            "torch.use_deterministic_algorithms(True) before training, or train on the CPU."
        )
    return (
        "no layer is to blame, so the order of the batches or a change made to the inputs comes from a generator of its own; "
        "seed it with the seed that fit is given."
    )


def _on_gpu(model: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in model.parameters())


class _Pass:
    """What one pass there and back leaves: outputs, their gradients and those of the weights, in the order they are met."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.outputs: list[tuple[str, Tensor]] = []
        self.gradients: list[tuple[str, Tensor]] = []
        self.weights: list[tuple[str, Tensor]] = []
        handles = [
            module.register_forward_hook(partial(self._met, name)) for name, module in model.named_modules() if name
        ]
        try:
            with torch.enable_grad():
                out = model(x)
            named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
            if out.requires_grad and named:
                found = torch.autograd.grad(out.square().sum(), [value for _, value in named], allow_unused=True)
                for (name, _), gradient in zip(named, found, strict=True):
                    if gradient is not None:
                        self.weights.append((name.rpartition(".")[0], gradient))
        finally:
            for handle in handles:
                handle.remove()

    def _met(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        self.outputs.append((name, output.detach().clone()))
        if output.requires_grad:
            output.register_hook(partial(self._met_again, name))  # type: ignore[no-untyped-call]

    def _met_again(self, name: str, gradient: Tensor) -> None:
        self.gradients.append((name, gradient.detach().clone()))


def unsteady_layer(model: nn.Module, x: Tensor) -> str | None:
    """The first layer that, in training mode, with torch's generator seeded alike, makes two things of one batch.

    Args:
        model: A network; left as it was found.
        x: Inputs for it.

    Returns:
        Name and kind of the layer and what differs; None where every layer is steady.
    """
    modes = {module: module.training for module in model.modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    passes = []
    try:
        model.train()
        for _ in range(2):
            model.load_state_dict(state)  # batch-norm statistics move in training mode
            with seeded("determinism", device=device):
                passes.append(_Pass(model, x.to(device)))
    finally:
        model.load_state_dict(state)
        for module, mode in modes.items():
            module.training = mode
    one, other = passes
    if (place := _first(one.outputs, other.outputs)) is not None:
        return _blamed(model, one.outputs[place][0], "outputs")
    if (place := _first(one.gradients, other.gradients)) is not None:
        # the gradient at a layer's output is made by the layer that takes it, the one before on the way back
        return _blamed(model, one.gradients[max(place - 1, 0)][0], "gradients")
    if (place := _first(one.weights, other.weights)) is not None:
        return _blamed(model, one.weights[place][0], "gradients")
    return None


def _blamed(model: nn.Module, name: str, what: str) -> str:
    return f"{name or 'at the root'} ({type(model.get_submodule(name)).__name__}) gives different {what}"


def _first(one: list[tuple[str, Tensor]], other: list[tuple[str, Tensor]]) -> int | None:
    """Position of the first difference."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, ((_, a), (_, b)) in pairs if not _same(a, b)), None)
