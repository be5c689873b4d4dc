"""What each analysed layer contributes to a row: its input and the gradient at its output, caught by hooks.

For a linear map with unfolded input U [T, in] and output gradient D [T, out] the row's entry is D^T U. Inner products of rows
need U and D alone; other layers with few parameters are written out, and everything else goes through torch.func.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional

from .errors import SolveError
from .problem import Problem

Normalised = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


Way = Literal["ghost", "parts", "rows"]
"""Of a linear layer: never written out; written out for each product, which takes less memory; written out at once."""


class NotPerExampleError(Exception):
    """A layer whose input or output does not have the examples on its first axis; holds its name."""


class SilentLayerError(SolveError):
    """A layer that was read for some examples and did not run for others; holds its name."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"Layer {layer!r} did not run; leave its parameters out of `parameters`.")
        self.layer = layer


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A linear map's part of the rows of b examples: the outer products sum_t D_t (x) U_t, not formed."""

    U: Float[Tensor, "b T in"]
    """Unfolded input; one more constant column for a bias."""
    D: Float[Tensor, "b R T out"]
    """Gradient at the output, for each of R rows."""
    ghost: bool = False
    """Whether inner products are better taken from U and D than from rows."""

    @property
    def width(self) -> int:
        """Parameters it stands for."""
        return self.U.shape[2] * self.D.shape[3]

    def rows(self) -> Float[Tensor, "bR p"]:
        """The rows written out.

        Returns:
            [b R, out in].
        """
        b, R, T, out = self.D.shape
        if T == 1:
            formed = self.D[:, :, 0, :, None] * self.U[:, None, :, :]
        else:
            formed = torch.matmul(self.D.reshape(b, R, T, out).mT, self.U[:, None])
        return formed.reshape(b * R, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Caught:
    """The rows of a block of examples, layer by layer."""

    pairs: Sequence[Pair]
    written: Float[Tensor, "bR q"]
    """Layers written out, side by side."""
    b: int
    R: int

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(pair.U.nbytes + pair.D.nbytes for pair in self.pairs) + self.written.nbytes

    @property
    def widest(self) -> int:
        """Columns of the widest layer, were it written out."""
        return max([self.written.shape[1], *(pair.width for pair in self.pairs)])

    @property
    def width(self) -> int:
        """Columns of all layers together."""
        return self.written.shape[1] + sum(pair.width for pair in self.pairs)

    def part(self, begin: int, end: int) -> Caught:
        """The rows of some of the examples.

        Args:
            begin: First of them.
            end: One behind the last; may lie beyond the block.

        Returns:
            Views of the same numbers.
        """
        pairs = [Pair(pair.U[begin:end], pair.D[begin:end], pair.ghost) for pair in self.pairs]
        written = self.written[begin * self.R : end * self.R]
        return Caught(pairs, written, len(written) // self.R, self.R)


def side_by_side(parts: Sequence[Caught]) -> Caught:
    """Several blocks as one.

    Args:
        parts: Blocks caught under one plan.

    Returns:
        All of their rows, in order.
    """
    if len(parts) == 1:
        return parts[0]
    layers = zip(*(part.pairs for part in parts), strict=True)
    pairs = [Pair(torch.cat([p.U for p in layer]), torch.cat([p.D for p in layer]), layer[0].ghost) for layer in layers]
    return Caught(pairs, torch.cat([part.written for part in parts]), sum(part.b for part in parts), parts[0].R)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which analysed parameters are read off which layer, and which need torch.func."""

    layers: Mapping[str, tuple[str, ...]]
    """Module name -> which of its parameters ("weight", "bias") are analysed."""
    other: tuple[str, ...]
    """Names of analysed parameters that no such layer holds."""
    ways: Mapping[str, Way]
    """What is kept of the rows of a linear layer; "rows" where nothing is said."""


def plan_layers(problem: Problem) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Sort the analysed parameters by the layer that uses them.

    Args:
        problem: The analysed function.

    Returns:
        Layers whose parameters hooks can serve, and the names of all other analysed parameters: those of other kinds of layer,
        and those that several layers share.
    """
    owners: dict[int, list[str]] = {}
    for module_name, module in problem.model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module_name)
    weights = dict(problem.model.named_parameters())
    layers: dict[str, list[str]] = {}
    other = []
    for name in problem.theta:
        module_name, _, short = name.rpartition(".")
        module = problem.model.get_submodule(module_name)
        if len(owners[id(weights[name])]) == 1 and _served(module, short):
            layers.setdefault(module_name, []).append(short)
        else:
            other.append(name)
    return {name: tuple(shorts) for name, shorts in layers.items()}, tuple(other)


def _served(module: nn.Module, parameter: str) -> bool:
    if parameter not in ("weight", "bias"):
        return False
    if type(module) in Normalised:
        return bool(module.track_running_stats)
    return type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm)


def places(problem: Problem, plan: Plan) -> tuple[list[Int[Tensor, "_ _"]], Int[Tensor, " q"]]:
    """Where in a vector over all analysed parameters the numbers lie that caught rows stand for.

    Args:
        problem: The analysed function.
        plan: What is read off which layer; of a linear problem, its head.

    Returns:
        Of every pair [in, out], a bias last; and of every column that is written out.
    """
    sizes = [value.numel() for value in problem.theta.values()]
    everywhere = torch.split(torch.arange(problem.p, device=problem.device), sizes)
    place = dict(zip(problem.theta, everywhere, strict=True))
    layers: Mapping[str, Sequence[str]] = plan.layers
    if problem.linear:
        assert problem.head is not None  # a linear problem is its head
        layers = {problem.head: [short for short in ("weight", "bias") if problem.full_name(short) in place]}
    pairs, written = [], []
    for name, shorts in layers.items():
        own = {short: place[f"{name}.{short}" if name else short] for short in shorts}
        module = problem.model.get_submodule(name)
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            written += [own[short] for short in ("weight", "bias") if short in own]
            continue
        out = module.weight.shape[0]
        columns = [own[short].view(out, -1) for short in ("weight", "bias") if short in own]
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        for group in torch.cat(columns, dim=1).chunk(groups):  # [out, in and perhaps one more]
            if problem.linear or plan.ways.get(name, "rows") != "rows":
                pairs.append(group.T)
            else:
                written.append(group.flatten())
    written += [place[name] for name in plan.other]
    return pairs, torch.cat(written) if written else torch.arange(0, device=problem.device)


def catch(problem: Problem, plan: Plan, z: Tensor, cotangents: Float[Tensor, "b R C"]) -> Caught:
    """Rows of a block of examples: one forward pass, one batched backward pass for all R directions.

    Args:
        problem: The analysed function; its model is in eval mode.
        plan: What to read off where.
        z: Inputs of b examples.
        cotangents: In logit space, one for each row.

    Returns:
        The rows, layer by layer.

    Raises:
        NotPerExampleError: A layer sees something else than one entry an example.
        SilentLayerError: A layer that the plan counts on did not run.
    """
    b, R, _ = cotangents.shape
    pairs, written = [], []
    for name, parts in contributions(problem, plan, z, cotangents):
        for part in parts:
            if not isinstance(part, Pair):
                written.append(part.reshape(b * R, -1))
            elif (way := plan.ways.get(name, "rows")) == "rows":
                written.append(part.rows())
            else:
                pairs.append(replace(part, ghost=way == "ghost"))
    if plan.other:
        written.append(rows_by_torch_func(problem, plan.other, z, cotangents.to(problem.dtype)).reshape(b * R, -1))
    empty = torch.empty(b * R, 0, dtype=problem.dtype, device=problem.device)
    return Caught(pairs, torch.cat(written, dim=1) if written else empty, b, R)


def contributions(
    problem: Problem, plan: Plan, z: Tensor, cotangents: Float[Tensor, "b R C"]
) -> Iterator[tuple[str, list[Pair | Tensor]]]:
    """What every layer that hooks serve adds to the rows of a block of examples.

    Args:
        problem: The analysed function; its model is in eval mode.
        plan: What to read off where.
        z: Inputs of b examples.
        cotangents: In logit space, one for each row.

    Yields:
        Module name and its parts: of linear maps a pair for each group, otherwise rows [b, R, q] of weight and bias.

    Raises:
        NotPerExampleError: A layer sees something else than one entry an example.
        SilentLayerError: A layer that the plan counts on did not run.
    """
    b = len(cotangents)
    cotangents = cotangents.to(problem.dtype)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in plan.layers}
    theta = {name: value.detach().requires_grad_() for name, value in problem.theta.items()}

    def keep(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if len(inputs) != 1 or not isinstance(output, Tensor) or len(inputs[0]) != b or len(output) != b:
            raise NotPerExampleError(name)
        calls[name].append((inputs[0].detach(), output))
        return output.clone()  # what follows may work in place; the output that was kept must stay what it was

    with ExitStack() as stack, torch.enable_grad():
        for name in plan.layers:
            module = problem.model.get_submodule(name)
            handle = module.register_forward_hook(lambda m, inputs, output, name=name: keep(name, inputs, output))
            stack.callback(handle.remove)
        logits = functional_call(problem.model, {**problem.fixed, **theta}, (z,))
        silent = [name for name, seen in calls.items() if not seen]
        if silent:
            raise SilentLayerError(silent[0])
        grads = iter(_sent_back(logits, [output for seen in calls.values() for _, output in seen], cotangents))
    for name, seen in calls.items():
        module = problem.model.get_submodule(name)
        parts = [(x, next(grads).transpose(0, 1)) for x, _ in seen]  # D: [b, R, ...]
        yield name, list(_layer(module, plan.layers[name], parts))


def _sent_back(logits: Tensor, outputs: list[Tensor], cotangents: Tensor) -> Sequence[Tensor]:
    """Gradients [R, b, ...] at the outputs of layers, all directions in one batched backward pass."""
    if not outputs:
        return ()
    if cotangents.shape[1] == 1:
        # without the cost of a batched pass; a sum, as torch loads half of itself where it is given gradients
        total = (logits * cotangents[:, 0]).sum()
        one = torch.autograd.grad(total, outputs, allow_unused=True, materialize_grads=True)
        return [gradient[None] for gradient in one]
    return torch.autograd.grad(
        logits,
        outputs,
        cotangents.transpose(0, 1),
        is_grads_batched=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _layer(module: nn.Module, analysed: tuple[str, ...], parts: list[tuple[Tensor, Tensor]]) -> Iterator[Pair | Tensor]:
    """The contributions of a layer; its several calls are put side by side along T (their sum of Grams would be wrong)."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        unfold = _unfold_linear if isinstance(module, nn.Linear) else _unfold_conv
        opened = [unfold(module, x, D) for x, D in parts]
        for group in range(len(opened[0])):
            U = torch.cat([call[group][0] for call in opened], dim=1)
            D = torch.cat([call[group][1] for call in opened], dim=2)
            columns = [U] if "weight" in analysed else []
            if "bias" in analysed:
                columns.append(U.new_ones(*U.shape[:2], 1))
            yield Pair(torch.cat(columns, dim=2) if len(columns) > 1 else columns[0], D)
        return
    scaled = _scaled_batch_norm if isinstance(module, Normalised) else _scaled_layer_norm
    sums = [scaled(module, x, D) for x, D in parts]
    if "weight" in analysed:
        yield torch.stack([w for w, _ in sums]).sum(0)
    if "bias" in analysed:
        yield torch.stack([c for _, c in sums]).sum(0)


def _unfold_linear(module: nn.Module, x: Tensor, D: Tensor) -> list[tuple[Tensor, Tensor]]:
    b, R = D.shape[:2]
    return [(x.reshape(b, -1, x.shape[-1]), D.reshape(b, R, -1, D.shape[-1]))]


def _unfold_conv(module: nn.Module, x: Tensor, D: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Patches and output gradients of every group."""
    assert isinstance(module, nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(x, list(module._reversed_padding_repeated_twice), mode=mode)
    kernel, stride, dilation = (tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
    patches = functional.unfold(padded, kernel, dilation=dilation, stride=stride).mT  # [b, T, in k k]
    b, R, out = D.shape[:3]
    D = D.reshape(b, R, out, -1).mT  # [b, R, T, out]
    return list(zip(patches.chunk(module.groups, dim=2), D.chunk(module.groups, dim=3), strict=True))


def _scaled_batch_norm(module: nn.Module, x: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(module, Normalised) and module.running_mean is not None and module.running_var is not None
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, var = module.running_mean.to(x), module.running_var.to(x)
    xhat = (x - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()
    b, R, C = D.shape[:3]
    D, xhat = D.reshape(b, R, C, -1), xhat.reshape(b, 1, C, -1)
    return (D * xhat).sum(3), D.sum(3)


def _scaled_layer_norm(module: nn.Module, x: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(module, nn.LayerNorm)
    xhat = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    b, R = D.shape[:2]
    width = 1
    for length in module.normalized_shape:
        width *= length
    D, xhat = D.reshape(b, R, -1, width), xhat.reshape(b, 1, -1, width)
    return (D * xhat).sum(2), D.sum(2)


def rows_by_torch_func(problem: Problem, names: Sequence[str], z: Tensor, cotangents: Tensor) -> Tensor:
    """Rows of some parameters by a vector-Jacobian product for every example and direction.

    Args:
        problem: The analysed function.
        names: The parameters.
        z: Inputs of b examples.
        cotangents: In logit space [b, R, C].

    Returns:
        Rows [b, R, p], parameters flattened in the order of `names`.

    Raises:
        SolveError: torch.func cannot batch through a layer of the model.
    """
    fixed = {name: value for name, value in problem.theta.items() if name not in names}
    theta = {name: problem.theta[name] for name in names}

    def one(z_i: Tensor, c_i: Tensor) -> Tensor:
        def logits(theta: Mapping[str, Tensor]) -> Tensor:
            out: Tensor = functional_call(problem.model, {**problem.fixed, **fixed, **theta}, (z_i[None],))[0]
            return out

        (row,) = vjp(logits, theta)[1](c_i)
        return torch.cat([row[name].flatten() for name in names])

    try:
        # direction by direction: some layers (PReLU) come out wrong under two nested vmaps
        rows = torch.stack([vmap(one)(z, cotangents[:, r]) for r in range(cotangents.shape[1])], dim=1)
    except RuntimeError as error:
        raise SolveError(
            f"The rows of {', '.join(names)} failed inside torch.func: {str(error).splitlines()[0]} Leave these parameters out."
        ) from error
    return rows
