"""The rows of a side, block by block: how they are caught, kept, and written out where they have to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .layers import Caught, Pair, Plan, Way, catch, side_by_side
from .problem import Problem
from .side import Side
from .work import ANY, Work

CATCH_BYTES = 2**26  # of what is caught in one pass of the network
BLOCK_BYTES = 2**30  # of the rows of a block in its widest layer: long enough products, and no more
KEPT_SHARE = 4  # of the budget: the rest is for the matrix, its factor and products
BYTES_TO_FLOPS = 10  # a byte moved costs about as much as so many operations of a matrix product


@dataclass(slots=True, eq=False)
class RowSet:
    """The rows of a side, caught block by block; kept where all of them fit.

    Args:
        side: The examples.
        plan: What is read off which layer.
        cotangents: [n, R, C].
        block: Examples in a block.
        step: Examples in one pass of the network.
        keep: Bytes of caught blocks that may be kept for the next sweep.
    """

    side: Side
    plan: Plan
    cotangents: Float[Tensor, "n R C"]
    block: int
    step: int
    keep: int
    _kept: dict[int, Caught] = field(default_factory=dict)
    _bytes: int = 0

    @property
    def R(self) -> int:
        """Rows an example."""
        return self.cotangents.shape[1]

    @property
    def N(self) -> int:
        """Rows in all."""
        return len(self.side) * self.R

    @property
    def blocks(self) -> list[slice]:
        """Examples of every block."""
        n = len(self.side)
        return [slice(start, min(start + self.block, n)) for start in range(0, n, self.block)]

    def span(self, examples: slice) -> slice:
        """Rows of some examples.

        Args:
            examples: Which ones.

        Returns:
            Row a of example i lies at i R + a.
        """
        return slice(examples.start * self.R, examples.stop * self.R)

    def caught(self, examples: slice) -> Caught:
        """The rows of a block.

        Args:
            examples: One of `blocks`.

        Returns:
            Its rows, from memory where they were kept.
        """
        if examples.start in self._kept:
            return self._kept[examples.start]
        rows = catch_rows(self.side, self.plan, examples, self.cotangents[examples], self.step)
        if self._bytes + rows.nbytes <= self.keep:
            self._kept[examples.start] = rows
            self._bytes += rows.nbytes
        return rows


def row_set(
    side: Side, plan: Plan, cotangents: Float[Tensor, "n R C"], work: Work = ANY, *, whole: bool = False
) -> RowSet:
    """The rows of a side, in blocks that respect a budget of memory.

    Args:
        side: The train set.
        plan: What is read off which layer.
        cotangents: In logit space.
        work: The budget.
        whole: All layers of a block will be written out at once.

    Returns:
        The rows; none is caught yet.
    """
    budget = work.budget(side.logits.device)
    one = catch_rows(side, plan, slice(0, 1), cotangents[:1])
    block = block_size(side, one, budget, whole=whole)
    return RowSet(side, plan, cotangents, block, pass_size(one), budget // KEPT_SHARE)


def pass_size(one: Caught) -> int:
    """Examples in one pass of the network.

    Args:
        one: The rows of one example.

    Returns:
        Between 1 and 512.
    """
    return max(1, min(512, CATCH_BYTES // max(one.nbytes, 1)))


def catch_rows(side: Side, plan: Plan, examples: slice, cotangents: Float[Tensor, "b R C"], step: int = 64) -> Caught:
    """Rows of some examples of a side.

    Args:
        side: Train set or queries.
        plan: What is read off which layer.
        examples: Which ones.
        cotangents: Theirs.
        step: Examples in one pass of the network.

    Returns:
        The rows, layer by layer.
    """
    if side.problem.linear:  # the head alone: its input is known, and its output gradient is the cotangent
        from .head import augmented

        phi = augmented(side, examples)
        b, R, _ = cotangents.shape
        return Caught([Pair(phi[:, None, :], cotangents[:, :, None, :], True)], phi.new_empty(b * R, 0), b, R)
    parts = []
    for at in range(examples.start, examples.stop, step):
        part = slice(at, min(at + step, examples.stop))
        own = cotangents[part.start - examples.start : part.stop - examples.start]
        parts.append(catch(side.problem, plan, side.inputs(part), own))
    return side_by_side(parts)


def make_plan(side: Side, R: int, *, write_all: bool = False, keep: int = BLOCK_BYTES) -> Plan:
    """Decide, from counted operations and bytes, which layers are better not written out.

    Args:
        side: The train set.
        R: Rows an example.
        write_all: Write every layer out: the primal form needs the rows themselves.
        keep: Bytes that rows may take which wait for the next product.

    Returns:
        The plan.
    """
    problem = side.problem
    if problem.linear:
        return Plan({}, (), {})
    if side.plan is None:  # hooks do not see all that the parameters do
        return Plan({}, tuple(problem.theta), {})
    ways = {} if write_all else _ways(side, side.plan.layers, R, keep)
    return Plan(side.plan.layers, side.plan.other, ways)


def _ways(side: Side, layers: Mapping[str, tuple[str, ...]], R: int, keep: int) -> dict[str, Way]:
    """For every layer, whether its inner products are better taken without writing its rows out, and if not, when to write."""
    one = slice(0, 1)
    mix = torch.ones(1, 1, side.num_classes, device=side.logits.device)
    ways: dict[str, Way] = {}
    written = 0
    for name in layers:
        pairs = catch(side.problem, Plan({name: layers[name]}, (), {name: "ghost"}), side.inputs(one), mix).pairs
        parts = sum(pair.U.numel() + R * pair.D.numel() for pair in pairs)
        if pairs and all(_ghost_wins(pair, R) for pair in pairs):
            ways[name] = "ghost"
            continue
        width = R * sum(pair.width for pair in pairs)
        ways[name] = "parts" if parts < width else "rows"
        written += len(side) * width * torch.finfo(side.problem.dtype).bits // 8
    # written once is cheapest, as long as all of it can stay
    return {name: "rows" if way == "parts" and written <= keep else way for name, way in ways.items()}


def _ghost_wins(pair: Pair, R: int) -> bool:
    """Whether inner products from U and D cost less than from written rows, for a pair of examples with R rows each."""
    _, T, inputs = pair.U.shape
    out = pair.D.shape[3]
    from_parts = 2 * T * T * (inputs + R * R * (out + 1)) + BYTES_TO_FLOPS * 12 * R * R * T * T
    written = 2 * R * R * inputs * out + (0 if T == 1 else 2 * T * inputs * out * R // 64)
    return from_parts < written


def block_size(side: Side, one: Caught, budget: int, *, whole: bool) -> int:
    """Examples in a block.

    Args:
        side: The train set.
        one: The rows of one example.
        budget: Bytes.
        whole: All layers are written out at once.

    Returns:
        Between 1 and 512, so that the rows of two blocks in their widest layer, and a strip of the Gram matrix, take a good
        part of the budget at most. The same for any budget that is large enough, so that tiles fit those kept earlier.
    """
    row = one.R * (2 * one.width if whole else one.widest) * torch.finfo(side.problem.dtype).bits // 8
    strip = 8 * one.R * one.R * len(side)
    most = min(BLOCK_BYTES, budget // 8) if side.logits.device.type == "cpu" else budget // 8
    return max(1, min(512, len(side), most // max(row, strip, 1)))


def written_rows(rows: RowSet) -> Iterator[tuple[slice, Float[Tensor, "bR p"]]]:
    """The rows themselves, block by block, for the primal form.

    Args:
        rows: With a plan that writes every layer out.

    Yields:
        Examples and their rows, float64.
    """
    for examples in rows.blocks:
        yield examples, full_rows(rows.caught(examples)).double()


def full_rows(caught: Caught) -> Float[Tensor, "bR p"]:
    """Rows with every layer written out; the order of the columns is that of the plan, for every block of any side.

    Args:
        caught: Rows of a block.

    Returns:
        In the type of the problem.
    """
    parts = [*(pair.rows() for pair in caught.pairs), caught.written]
    return torch.cat(parts, dim=1)


def smaller_form(problem: Problem, n: int, R: int) -> Literal["primal", "dual"]:
    """The form with the smaller matrix.

    Args:
        problem: The analysed function.
        n: Train examples.
        R: Rows an example.

    Returns:
        "primal" when p <= n R, else "dual".
    """
    return "primal" if problem.p <= n * R else "dual"
