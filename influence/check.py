"""The check that runs before anything dear: an example's gradient must not depend on its company."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import UpweightError
from .errors import SolveError
from .examples import Reader
from .problem import Problem, check_logits, run_model
from .side import to_problem

FEW = 4
SUSPECTS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def check_batch_independence(problem: Problem, reader: Reader) -> None:
    """Compare gradients of a few examples taken alone and inside a batch.

    Args:
        problem: The analysed function; its model is in eval mode.
        reader: The train set.

    Raises:
        SolveError: They differ by more than rounding, or the model cannot run one example alone; names the first layer at fault.
    """
    rows = slice(0, min(FEW, len(reader)))
    x, y = reader.block(rows)
    try:
        _compare(problem, reader, rows, x, y)
    except SolveError as error:
        # float32 rounding may open a rectifier in one batch and close it in another; real dependence shows in float64 too
        if problem.dtype == torch.float64 or not _passes(_in_float64(problem), reader, rows, x, y):
            raise error from error.__cause__


def _passes(problem: Problem, reader: Reader, rows: slice, x: Tensor, y: Tensor) -> bool:
    try:
        _compare(problem, reader, rows, x, y)
    except UpweightError:
        return False
    return True


def _in_float64(problem: Problem) -> Problem:
    theta, fixed = (
        {name: value.double() if value.is_floating_point() else value for name, value in part.items()}
        for part in (problem.theta, problem.fixed)
    )
    return replace(problem, theta=theta, fixed=fixed, dtype=torch.float64)


def _compare(problem: Problem, reader: Reader, rows: slice, x: Tensor, y: Tensor) -> None:
    x, y = to_problem(problem, x), y.to(problem.device)
    few = len(x)
    # company that differs, even where the first examples are copies of each other
    x = torch.cat([x, x / 2 if x.is_floating_point() else x.flip(0)])
    try:
        with torch.no_grad():
            check_logits(run_model(problem, x, reader.name)[:few], y, rows, reader.name)
        together = [_gradient(problem, x, i) for i in range(few)]
        alone = [_gradient(problem, x[i : i + 1], 0) for i in range(few)]
    except ValueError as error:  # batch-norm in training mode refuses a batch of one
        raise SolveError(_refusal(problem, x, f"cannot run one example alone ({error})")) from error
    for i, (a, b) in enumerate(zip(alone, together, strict=True)):
        largest = max(float(a.norm()), float(b.norm()))
        difference = float((a - b).norm()) / largest if largest else 0.0
        if difference > torch.finfo(problem.dtype).eps ** 0.5:
            reason = (
                f"gives train example {i} another gradient alone than inside a batch (they differ by {difference:.1%})"
            )
            raise SolveError(_refusal(problem, x, reason))


def _gradient(problem: Problem, x: Tensor, i: int) -> Tensor:
    """Gradient of one fixed mix of the logits of example i, by plain autograd over the whole batch."""
    # not of the loss: on a confident example that is nothing but rounding, which differs between any two batch sizes
    theta = {name: value.detach().clone().requires_grad_() for name, value in problem.theta.items()}
    with torch.enable_grad():
        logits = run_model(problem, x, "train", theta)
        mix = torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype, device=logits.device)
        grads = torch.autograd.grad(logits[i] @ mix, list(theta.values()), allow_unused=True)
    flat = [torch.zeros_like(v) if g is None else g for g, v in zip(grads, theta.values(), strict=True)]
    return torch.cat([g.reshape(-1) for g in flat])


def _refusal(problem: Problem, x: Tensor, reason: str) -> str:
    culprit = _first_dependent_layer(problem, x)
    return (
        f"{type(problem.model).__name__} {reason}: its outputs depend on the batch or on chance{culprit}. Scores of single "
        "examples mean nothing there; use running statistics in batch-norm and no dropout at evaluation."
    )


def _first_dependent_layer(problem: Problem, x: Tensor) -> str:
    """Name of the first layer whose output for the first example changes with its company, for the message."""
    outputs: list[tuple[str, Tensor]] = []
    together: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, i, out, name=name: outputs.append((name, out[:1].detach())))
        for name, module in problem.model.named_modules()
        if not list(module.children())
    ]
    every = {**problem.fixed, **problem.theta}
    try:
        with torch.no_grad():
            functional_call(problem.model, every, (x,))
            together = list(outputs)
            outputs.clear()
            functional_call(problem.model, every, (x[:1],))
    except (
        ValueError,
        AttributeError,
        TypeError,
    ):  # the lone run failed or a layer gives no tensor: what ran so far decides
        pass
    finally:
        for handle in handles:
            handle.remove()
    tolerance = torch.finfo(problem.dtype).eps ** 0.5
    for (name, a), (_, b) in zip(together, outputs, strict=False):
        if a.shape != b.shape or float((a - b).norm()) > tolerance * float(a.norm()):
            return f", first in {name!r} ({type(problem.model.get_submodule(name)).__name__})"
    for name, module in problem.model.named_modules():
        if isinstance(module, SUSPECTS):
            return f", perhaps through {name!r} ({type(module).__name__})"
    return ""
