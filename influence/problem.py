"""The analysed function: a chosen part of a model's parameters, with everything else held fixed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .. import UsageError
from .errors import ShapeError, SolveError
from .rows import cross_entropy, residuals

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [b, C], labels [b]) -> the loss of each example [b]; differentiable twice."""


@contextmanager
def multiplying(kind: Literal["highest", "high"]) -> Generator[None]:
    """Set for a while what a GPU multiplies float32 matrices in, whatever the user has set for training.

    Args:
        kind: "highest": float32 itself, in convolutions too. "high": tf32.

    Yields:
        Nothing.
    """
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(kind)
    torch.backends.cudnn.allow_tf32 = kind == "high"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put a model in eval mode for a while, and a GPU to full precision; every module gets its own mode back, whatever happens.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with multiplying("highest"):  # a GPU convolves in tf32 unless it is told not to
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A network as a function of its analysed parameters alone.

    `model` is never changed: its weights are read into `theta` and `fixed` once (in the wanted type, on the wanted device)
    and put back in by `torch.func.functional_call`. Wrap the work in `evaluating(model)`.
    """

    model: nn.Module
    theta: Mapping[str, Tensor]
    """Analysed parameters by name."""
    fixed: Mapping[str, Tensor]
    """Every other parameter and buffer."""
    head: str | None
    """Name of the linear layer that gives the logits, when the model has one."""
    loss: Loss | None
    """None: cross-entropy, for which closed forms hold."""
    dtype: torch.dtype
    device: torch.device
    weight_decay: float | None = None
    """L2 penalty of the training run, when known."""

    @property
    def p(self) -> int:
        """Number of analysed parameters."""
        return sum(value.numel() for value in self.theta.values())

    @property
    def linear(self) -> bool:
        """Whether every analysed parameter belongs to the head: then the network is its features and a linear map."""
        return self.head is not None and set(self.theta) <= {self.full_name("weight"), self.full_name("bias")}

    def full_name(self, parameter: str) -> str:
        """Name in the model of a parameter of the head.

        Args:
            parameter: "weight" or "bias".

        Returns:
            The name, with the head's own in front when it has one.
        """
        return f"{self.head}.{parameter}" if self.head else parameter

    @property
    def head_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight [C, F] and bias [C] of the head in float64."""
        every = {**self.fixed, **self.theta}
        bias = every.get(self.full_name("bias"))
        return every[self.full_name("weight")].double(), None if bias is None else bias.double()

    def logits(self, theta: Mapping[str, Tensor], z: Tensor) -> Float[Tensor, "b C"]:
        """Outputs at given analysed parameters.

        Args:
            theta: Values of the analysed parameters.
            z: Features [b, F] (float64) when the problem is linear, else inputs [b, ...].

        Returns:
            Logits [b, C].
        """
        if not self.linear:
            out: Tensor = functional_call(self.model, {**self.fixed, **theta}, (z,))
            return out
        weight, bias = self.head_parameters
        weight = theta.get(self.full_name("weight"), weight)
        bias = theta.get(self.full_name("bias"), bias)
        return nn.functional.linear(z, weight, bias)

    def losses(self, logits: Float[Tensor, "b C"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Loss of each example, in the type of the logits.

        Args:
            logits: Outputs of the network.
            y: Labels.

        Returns:
            Losses [b], nats.
        """
        if self.loss is None:
            return nn.functional.cross_entropy(logits, y, reduction="none")
        return self.loss(logits, y)

    def start(self) -> dict[str, Tensor]:
        """The analysed parameters where everything is differentiated, in the type that `logits` computes in.

        Returns:
            float64 for a linear problem (its features are), the problem's own type otherwise.
        """
        return {name: value.double() if self.linear else value for name, value in self.theta.items()}

    def gradients(self, z: Tensor, residual: Float[Tensor, "b C"]) -> Float[Tensor, "b p"]:
        """Per-example gradients of the loss in the analysed parameters: the residual sent back through the network.

        The residual comes from outside, in float64: autograd's own softmax minus one-hot has no digits left on an example that
        is fitted well.

        Args:
            z: Features (linear problem) or inputs of b examples.
            residual: Gradients of their losses in the logits.

        Returns:
            Gradients [b, p], parameters flattened in the order of `theta`, nats per unit of parameter.

        Raises:
            SolveError: torch.func cannot batch through a layer of the model.
            OutOfMemoryError: The device's memory is full; a smaller batch size helps.
        """
        if self.linear:  # without torch.func, whose first call alone takes seconds
            r = residual.double()
            own = {
                self.full_name("weight"): lambda: (r[:, :, None] * z[:, None, :]).flatten(1),
                self.full_name("bias"): lambda: r,
            }
            return torch.cat([own[name]() for name in self.theta], dim=1)

        def one(theta: dict[str, Tensor], z_i: Tensor, r_i: Tensor) -> Tensor:
            return self.logits(theta, z_i[None])[0] @ r_i

        theta = self.start()
        try:
            by_name = vmap(grad(one), in_dims=(None, 0, 0))(theta, z, residual.to(self.dtype))
        except torch.OutOfMemoryError:
            raise  # a RuntimeError too, but not about the model
        except RuntimeError as error:
            raise SolveError(
                f"Per-example gradients of {type(self.model).__name__} failed inside torch.func: {str(error).splitlines()[0]} "
                "Replace the layer it names, or leave its parameters out of `parameters`."
            ) from error
        return torch.cat([by_name[name].flatten(1) for name in theta], dim=1)

    def flatten(self, theta: Mapping[str, Tensor]) -> Float[Tensor, " p"]:
        """Analysed parameters as one vector.

        Args:
            theta: Values by name.

        Returns:
            One vector, in the order of `theta` of the problem.
        """
        return torch.cat([theta[name].reshape(-1) for name in self.theta])

    def unflatten(self, vector: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """The inverse of `flatten`.

        Args:
            vector: Values of all analysed parameters.

        Returns:
            Values by name.
        """
        parts = torch.split(vector, [value.numel() for value in self.theta.values()])
        return {name: part.view_as(value) for part, (name, value) in zip(parts, self.theta.items(), strict=True)}

    def output_losses(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its gradient in the logits, in float64 whatever the body's precision.

        Args:
            logits: Outputs [b, C].
            y: Labels [b].

        Returns:
            Losses [b] and residuals [b, C].

        Raises:
            ShapeError: The loss does not give one number an example.
        """
        if self.loss is None:
            return cross_entropy(logits, y), residuals(logits, y)
        at = logits.detach().double().requires_grad_()
        with torch.enable_grad():
            losses = self.loss(at, y)
            if not isinstance(losses, Tensor) or losses.shape != y.shape:
                found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise ShapeError(
                    f"`loss` gives {found} for {len(y)} examples; one loss an example is wanted, as with reduction='none'."
                )
            (r,) = torch.autograd.grad(losses.sum(), at)
        return losses.detach(), r


def make_problem(
    model: nn.Module,
    parameters: Sequence[str],
    *,
    head: str | None,
    loss: Loss | None,
    dtype: torch.dtype | None,
    device: torch.device,
    weight_decay: float | None = None,
) -> Problem:
    """Read a model into a `Problem`.

    Args:
        model: Any module from inputs [b, ...] to logits [b, C].
        parameters: Names, as in `model.named_parameters()`, of the analysed ones.
        head: Name of the last linear layer, when there is one.
        loss: None for cross-entropy.
        dtype: Type to compute in; None: the model's own (float32 for a half-precision model).
        device: Where to compute.
        weight_decay: L2 penalty of the training run, when known.

    Returns:
        The problem; tensors are copied only where type or device differ.

    Raises:
        SolveError: A weight or buffer is NaN or infinite.
        UsageError: A parameter name is not the model's, or none is given.
    """
    weights = dict(model.named_parameters())
    unknown = [name for name in parameters if name not in weights]
    if unknown or not parameters:
        raise UsageError(
            f"{type(model).__name__} has no parameter {unknown or 'to analyse'}; it has {_some(list(weights))}."
        )
    if dtype is None:
        dtype = weights[parameters[0]].dtype
        dtype = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")

    def read(value: Tensor) -> Tensor:
        value = value.detach()
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    every = {name: read(value) for name, value in [*weights.items(), *model.named_buffers()]}
    for name, value in every.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SolveError(f"{name} of {type(model).__name__} holds NaN or infinite values; load sound weights.")
    theta = {name: every.pop(name) for name in parameters}
    return Problem(model, theta, every, head, loss, dtype, device, weight_decay)


def run_model(problem: Problem, x: Tensor, name: str, theta: Mapping[str, Tensor] | None = None) -> Tensor:
    """The whole network on a block of inputs.

    Args:
        problem: The problem; its model is in eval mode.
        x: Inputs, where the problem computes.
        name: "train" or "queries".
        theta: Values of the analysed parameters; None: the model's own.

    Returns:
        Logits [b, C].

    Raises:
        OutOfMemoryError: The device's memory is full; a smaller batch size helps.
        ShapeError: The model cannot run on such inputs, or what it gives is not [b, C] with C > 1.
    """
    try:
        out: object = functional_call(problem.model, {**problem.fixed, **(theta or problem.theta)}, (x,))
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but not about the shapes
    except (RuntimeError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ShapeError(
            f"{type(problem.model).__name__} cannot run on {name} inputs {x.dtype} {list(x.shape)}: {first}. Give inputs of the "
            "shape and type that it was trained on."
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x) or out.shape[1] < 2:
        found = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ShapeError(
            f"{type(problem.model).__name__} gives {found} for {len(x)} {name} examples; logits [b, C] with at least two "
            "classes are needed."
        )
    return out


def check_logits(logits: Tensor, y: Tensor, rows: slice, name: str) -> None:
    """Refuse outputs and labels that no score can be made of.

    Args:
        logits: Outputs of the model for a block.
        y: Labels of the block.
        rows: Which examples these are.
        name: "train" or "queries".

    Raises:
        ShapeError: A label is outside the classes.
        SolveError: A logit is NaN or infinite.
    """
    wrong = ((y < 0) | (y >= logits.shape[1])).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ShapeError(
            f"Example {rows.start + at} of {name} has label {int(y[at])}, but the model has {logits.shape[1]} classes "
            f"(0 to {logits.shape[1] - 1}); fix the labels, or give the model that was trained on them."
        )
    bad = (~torch.isfinite(logits)).any(1).nonzero()
    if len(bad):
        raise SolveError(
            f"The logits of example {rows.start + int(bad[0])} of {name} are NaN or infinite; look for such values in its input."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 6 else shown
