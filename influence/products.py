"""The mean curvature times vectors, batch by batch: all that a method needs which never forms a matrix of p x p."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from .. import UsageError
from .errors import SolveError
from .problem import Problem
from .side import Side

Kind = Literal["ggn", "hessian"]
TANGENT_BYTES = 256 * 2**20  # of tangent vectors in flight


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """V -> H V for the mean curvature H over a train set; sums, not means, are added up: any batch size gives the same."""

    side: Side
    kind: Kind = "ggn"
    """"ggn": J^T S J, with the softmax Hessian S in the logits, for cross-entropy. "hessian": all of it, for any loss."""

    def __post_init__(self) -> None:
        if self.kind not in ("ggn", "hessian"):
            raise UsageError(f"curvature must be 'ggn' or 'hessian', got {self.kind!r}.")
        if self.kind == "ggn" and self.side.problem.loss is not None:
            raise UsageError("The Gauss-Newton matrix here is that of cross-entropy; with another loss take 'hessian'.")

    @property
    def p(self) -> int:
        """Length of a vector."""
        return self.side.problem.p

    def __call__(self, V: Float[Tensor, "p b"]) -> Float[Tensor, "p b"]:
        """H V.

        Args:
            V: Vectors in the order of `Problem.flatten`; any floating type.

        Returns:
            The products, accumulated in float64.
        """
        side, problem = self.side, self.side.problem
        tangents = V.T.to(torch.float64 if problem.linear else problem.dtype)
        out = torch.zeros(tangents.shape, dtype=torch.float64, device=side.logits.device)
        chunk = tangents_at_once(problem, min(side.batch_size, len(side)))
        for begin in range(0, len(side), side.batch_size):
            examples = slice(begin, min(begin + side.batch_size, len(side)))
            z = side.inputs(examples)
            for first in range(0, len(out), chunk):
                part = slice(first, first + chunk)
                if self.kind == "ggn":
                    out[part] += ggn_products(problem, z, side.logits[examples], tangents[part])
                else:
                    out[part] += hessian_products(problem, z, side.target[examples], tangents[part])
        return out.T / len(side)


def tangents_at_once(problem: Problem, batch_size: int) -> int:
    """How many vectors are sent through the network in one step.

    Args:
        problem: The analysed function.
        batch_size: Examples in the step.

    Returns:
        At least one.
    """
    item = 8 if problem.linear else torch.finfo(problem.dtype).bits // 8
    return max(1, min(problem.p, TANGENT_BYTES // (item * (problem.p + 64 * batch_size))))


def ggn_products(
    problem: Problem, z: Tensor, logits: Float[Tensor, "n C"], tangents: Float[Tensor, "b p"]
) -> Float[Tensor, "b p"]:
    """The sum of the Gauss-Newton matrices of some examples times vectors: forward mode, the softmax Hessian, reverse mode.

    Args:
        problem: The analysed function; its loss is cross-entropy.
        z: Features (linear problem) or inputs of the examples.
        logits: Their outputs, float64: probabilities are formed from these.
        tangents: Vectors, in the type that the problem computes in.

    Returns:
        The products, in the same type.
    """
    start = problem.flatten(problem.start())
    q = logits.softmax(1)

    def outputs(vector: Tensor) -> Tensor:
        return problem.logits(problem.unflatten(vector), z)

    def products() -> Tensor:
        pulled = vjp(outputs, start)[1]

        def product(tangent: Tensor) -> Tensor:
            u = jvp(outputs, (start,), (tangent,))[1].double()
            Su = q * (u - (q * u).sum(1, keepdim=True))
            back: Tensor = pulled(Su.to(tangents.dtype))[0]
            return back

        found: Tensor = vmap(product)(tangents)
        return found

    return _in_torch_func("Gauss-Newton matrix", problem, products)


def hessian_products(
    problem: Problem, z: Tensor, y: Int[Tensor, " n"], tangents: Float[Tensor, "b p"]
) -> Float[Tensor, "b p"]:
    """The sum of the Hessians of some examples times vectors: forward mode over reverse mode.

    Args:
        problem: The analysed function.
        z: Features (linear problem) or inputs of the examples.
        y: Their labels.
        tangents: Vectors, in the type that the problem computes in.

    Returns:
        The products, in the same type.
    """
    start = problem.flatten(problem.start())

    def summed(vector: Tensor) -> Tensor:
        return problem.losses(problem.logits(problem.unflatten(vector), z), y).sum()

    def product(tangent: Tensor) -> Tensor:
        out: Tensor = jvp(grad(summed), (start,), (tangent,))[1]
        return out

    return _in_torch_func("Hessian", problem, lambda: vmap(product)(tangents))


def _in_torch_func(what: str, problem: Problem, work: Callable[[], Tensor]) -> Tensor:
    """Do it, and name the model where torch.func cannot."""
    try:
        with warnings.catch_warnings():
            # on first use torch imports its forward-mode formulas, which still call its own deprecated jit.script
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
            return work()
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but not about the model
    except (RuntimeError, NotImplementedError) as error:
        raise SolveError(
            f"The {what} of {type(problem.model).__name__} failed inside torch.func: {str(error).splitlines()[0]} "
            "Replace the layer it names, or leave its parameters out of `parameters`."
        ) from error
