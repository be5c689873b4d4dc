"""Blocks of a curvature, one a layer, and the bases in which each of them is diagonal.

A linear map with weight [out, in] (a bias is one more input that is always 1) has the block V_out (x) V_in: in these
coordinates a gradient D^T U is (D V_out)^T (U V_in), and the curvature one number an entry. Other parameters are one row, with a
basis of their own or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .errors import SolveError
from .gradients import Gradients, Part, part_bytes, read_size
from .layers import Caught, Pair, Plan
from .problem import Problem
from .rowset import KEPT_SHARE, catch_rows
from .side import Side
from .work import Work

Others = Literal["dense", "diagonal", "skip"]
DENSE_LIMIT = 4_096  # parameters of a layer up to which its whole block is decomposed


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Parameters of a layer (or of a group of a convolution) as a matrix."""

    name: str
    """The layer."""
    map: bool
    """A linear map; otherwise parameters written out as one row."""
    place: Int[Tensor, "out in"]
    """Where its parameters lie among all analysed ones."""
    V_out: Float[Tensor, "out out"] | None = None
    """Basis of the outputs, in columns; None: their own."""
    V_in: Float[Tensor, "in in"] | None = None
    """Basis of the inputs."""

    @property
    def size(self) -> int:
        """Parameters in it."""
        return self.place.numel()

    def turned(self, G: Float[Tensor, "k out in"], *, back: bool = False) -> Float[Tensor, "k out in"]:
        """Matrices in the basis of the block.

        Args:
            G: Matrices over its parameters.
            back: From the basis instead.

        Returns:
            V_out^T G V_in; V_out G V_in^T on the way back.
        """
        if self.V_out is not None:
            G = (self.V_out if back else self.V_out.T) @ G
        if self.V_in is not None:
            G = G @ (self.V_in.T if back else self.V_in)
        return G

    def gradients(self, U: Float[Tensor, "b T in"], D: Float[Tensor, "b T out"]) -> Float[Tensor, "b out in"]:
        """sum_t D_t (x) U_t in the basis of the block, formed in the cheaper order.

        Args:
            U: Inputs.
            D: Gradients at the output.

        Returns:
            One matrix an example.
        """
        T, (outs, ins) = U.shape[1], self.place.shape
        if T * (ins**2 + outs**2) > ins * outs * (ins + outs):
            return self.turned(D.mT @ U)
        U, D = self.turned_parts(U, D)
        return D.mT @ U if T > 1 else D[:, 0, :, None] * U[:, 0, None, :]

    def turned_parts(
        self, U: Float[Tensor, "b T in"], D: Float[Tensor, "b T out"]
    ) -> tuple[Float[Tensor, "b T in"], Float[Tensor, "b T out"]]:
        """Inputs and output gradients in the basis of the block.

        Args:
            U: Inputs.
            D: Gradients at the output.

        Returns:
            U V_in and D V_out.
        """
        return U if self.V_in is None else U @ self.V_in, D if self.V_out is None else D @ self.V_out

    def part(self, U: Float[Tensor, "b T in"], D: Float[Tensor, "b T out"]) -> Part:
        """The gradients of some examples as `Gradients` multiplies them.

        Args:
            U: Inputs.
            D: Gradients at the output.

        Returns:
            At one position of a linear map the pair, otherwise matrices written out [b, out in].
        """
        if not self.map or U.shape[1] > 1:
            return self.gradients(U, D).flatten(1)
        U, D = self.turned_parts(U, D)
        return Pair(U, D[:, None])


@dataclass(slots=True, eq=False)
class KroneckerMatrix:
    """An approximate mean curvature: diagonal in the bases of its blocks."""

    side: Side
    """The train set."""
    plan: Plan
    """What is read off which layer."""
    step: int
    """Examples in one pass of the network."""
    blocks: Sequence[Block]
    lam: Float[Tensor, " size"]
    """Eigenvalues, block after block, row after row; float64."""
    left_out: Sequence[str]
    """Analysed parameters that have no part in it."""
    diagonal: Sequence[str]
    """Layers whose other parameters are taken one by one."""

    @property
    def size(self) -> int:
        """Parameters that have a part in it."""
        return len(self.lam)

    @property
    def lambda_max(self) -> float:
        """Largest eigenvalue."""
        return float(self.lam.max())

    def gradients(self, side: Side, rows: slice) -> Float[Tensor, "b size"]:
        """Per-example gradients in the bases of the blocks.

        Args:
            side: Train set or queries.
            rows: Which examples.

        Returns:
            In the type that the problem computes in.
        """
        parts = []
        for at in range(rows.start, rows.stop, self.step):
            part = slice(at, min(at + self.step, rows.stop))
            caught = catch_rows(side, self.plan, part, side.residual[part][:, None, :], self.step)
            own = [block.gradients(U, D[:, 0]).flatten(1) for block, U, D in taken_apart(caught, self.blocks)]
            parts.append(torch.cat(own, dim=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def train_gradients(self, work: Work) -> Gradients:
        """The train gradients in its coordinates.

        Args:
            work: Memory, of which kept gradients take a part.

        Returns:
            The means to read them; none is formed yet but one.
        """
        side, cotangents = self.side, self.side.residual[:, None, :]

        def read(rows: slice) -> list[Part]:
            caught = catch_rows(side, self.plan, rows, cotangents[rows], self.step)
            return [block.part(U, D[:, 0]) for block, U, D in taken_apart(caught, self.blocks)]

        order, at = [], 0
        one = read(slice(0, 1))
        for block, part in zip(self.blocks, one, strict=True):
            own = torch.arange(at, at + block.size, device=self.lam.device)
            order.append(own.view(block.place.shape).T.flatten() if isinstance(part, Pair) else own)
            at += block.size
        each = sum(part_bytes(part) for part in one)
        budget = work.budget(self.lam.device)
        return Gradients(side, read, torch.cat(order), each, read_size(each, budget), budget // KEPT_SHARE)

    def inverse(self, vectors: Float[Tensor, "k p"], damping: float) -> Float[Tensor, "k p"]:
        """(this + damping I)^-1 times vectors over all analysed parameters.

        Args:
            vectors: In rows, in the order of `Problem.flatten`.
            damping: Positive.

        Returns:
            The products; what has no part in the curvature is divided by the damping.
        """
        dtype = working_type(self.side.problem)
        X, at = vectors.to(dtype), 0
        out = X / damping
        for block in self.blocks:
            lam = self.lam[at : at + block.size].view(block.place.shape).to(dtype)
            out[:, block.place] = block.turned(block.turned(X[:, block.place]) / (lam + damping), back=True)
            at += block.size
        return out.to(vectors.dtype)


def working_type(problem: Problem) -> torch.dtype:
    """What gradients of a problem are formed in.

    Args:
        problem: The analysed function.

    Returns:
        float64 for a head alone, whose features are.
    """
    return torch.float64 if problem.linear else problem.dtype


def taken_apart(caught: Caught, blocks: Sequence[Block]) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Every block with its inputs U [b, T, in] and output gradients D [b, R, T, out]; rows written out have D = 1.

    Args:
        caught: Rows of a block of examples.
        blocks: In the order of what is caught.

    Yields:
        Block, U and D; of parameters written out U is [b R, 1, q].
    """
    pairs, at = iter(caught.pairs), 0
    for block in blocks:
        if block.map:
            pair = next(pairs)
            yield block, pair.U, pair.D
        else:
            U = caught.written[:, None, at : at + block.size]
            yield block, U, U.new_ones(len(U), 1, 1, 1)
            at += block.size


def kronecker_plan(side: Side, *, skip: bool) -> tuple[Plan, list[str]]:
    """What to read off which layer.

    Args:
        side: The train set, examined.
        skip: Leave out the parameters of no linear map.

    Returns:
        The plan, and the names of the parameters that it leaves out.

    Raises:
        SolveError: Nothing is left.
    """
    problem = side.problem
    if problem.linear:
        return Plan({}, (), {}), []
    if side.plan is None:  # hooks do not see all that the parameters do
        layers, other = {}, tuple(problem.theta)
    else:
        layers, other = dict(side.plan.layers), side.plan.other
    maps = {name: shorts for name, shorts in layers.items() if _is_map(problem, name)}
    owners = [owner(name) for name in other]
    other = tuple(sorted(other, key=lambda name: owners.index(owner(name))))  # side by side, layer by layer
    ways = dict.fromkeys(maps, "parts")
    if not skip:
        return Plan(layers, other, ways), []  # type: ignore[arg-type]  # "parts" is a Way
    if not maps:
        raise SolveError(
            f"No analysed layer of {type(problem.model).__name__} is a Linear or Conv2d that a Kronecker product approximates; "
            "take others='dense', or GaussNewton()."
        )
    out = [f"{name}.{short}" for name, shorts in layers.items() if name not in maps for short in shorts]
    return Plan(maps, (), ways), [*out, *other]  # type: ignore[arg-type]


def layout(problem: Problem, plan: Plan) -> list[Block]:
    """The blocks of a plan, without bases, in the order in which rows are caught.

    Args:
        problem: The analysed function.
        plan: What `kronecker_plan` gave.

    Returns:
        Linear maps group by group, then all other parameters layer by layer.
    """
    places, start = {}, 0
    for name, value in problem.theta.items():
        places[name] = torch.arange(start, start + value.numel(), device=problem.device).view(value.shape)
        start += value.numel()
    if problem.linear:
        assert problem.head is not None  # a linear problem is its head
        shorts = tuple(short for short in ("weight", "bias") if problem.full_name(short) in places)
        return list(_maps(problem, problem.head, shorts, places))
    maps: list[Block] = []
    rest: list[Block] = []
    for name, shorts in plan.layers.items():
        if _is_map(problem, name):
            maps += _maps(problem, name, shorts, places)
        else:
            own = [places[_full(name, short)].flatten() for short in ("weight", "bias") if short in shorts]
            rest.append(Block(name, False, torch.cat(own)[None]))
    for name, parameters in groupby(plan.other, key=owner):
        rest.append(Block(name, False, torch.cat([places[parameter].flatten() for parameter in parameters])[None]))
    return [*maps, *rest]


def _maps(problem: Problem, name: str, shorts: Sequence[str], places: dict[str, Tensor]) -> Iterator[Block]:
    """The blocks of a linear map: one for each group of a convolution."""
    groups = getattr(problem.model.get_submodule(name), "groups", 1)
    parts = []
    if "weight" in shorts:
        parts.append(places[_full(name, "weight")].flatten(1).chunk(groups))
    if "bias" in shorts:
        parts.append(places[_full(name, "bias")][:, None].chunk(groups))
    for own in zip(*parts, strict=True):
        yield Block(name, True, torch.cat(own, dim=1))


def _is_map(problem: Problem, name: str) -> bool:
    return isinstance(problem.model.get_submodule(name), (nn.Linear, nn.Conv2d))


def _full(layer: str, short: str) -> str:
    return f"{layer}.{short}" if layer else short


def owner(parameter: str) -> str:
    """The layer of a parameter.

    Args:
        parameter: Its full name.

    Returns:
        The name of the module; that of the parameter itself where it belongs to the model.
    """
    return parameter.rpartition(".")[0] or parameter
