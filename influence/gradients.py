"""Per-example gradients in parts, and their products with vectors and with each other.

Of a linear layer that is read at one position the gradient is an outer product d u^T. It is kept as u and d, in + out numbers
instead of in x out, and never written out: its product with a matrix V is d^T V u, and with another gradient (u . u')(d . d').
All other gradients are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blas import product
from .layers import Pair, Plan, places
from .rowset import BLOCK_BYTES, KEPT_SHARE, catch_rows, pass_size
from .side import Side
from .work import ANY, Work

FLIGHT_BYTES = 2**24  # of V u of some examples: written and read again at once

Part = Pair | Float[Tensor, "b q"]
"""Of every example u [b, 1, in] and d [b, 1, 1, out], or a piece of the gradient itself."""


@dataclass(slots=True, eq=False)
class Gradients:
    """Per-example gradients of a side, block by block; kept where all of them fit."""

    side: Side
    read: Callable[[slice], Sequence[Part]]
    """Parts of the gradients of some examples; always of the same kinds."""
    order: Int[Tensor, " p"]
    """Place in a vector of every number that the parts stand for: of a pair [in, out], of a piece as it is."""
    each: int
    """Bytes of an example."""
    block: int
    """Examples that are read at once."""
    keep: int
    """Bytes that may be kept."""
    _kept: dict[int, Sequence[Part]] = field(default_factory=dict)
    _bytes: int = 0

    @classmethod
    def of(cls, side: Side, work: Work = ANY, *, keep: bool = True) -> Gradients:
        """The gradients in the coordinates of `Problem.flatten`, at the side's own labels.

        Args:
            side: Train set or queries.
            work: Memory, of which kept gradients take a part.
            keep: Whether they will be needed more than once.

        Returns:
            The means to read them; none is formed yet.
        """
        problem, device = side.problem, side.logits.device
        budget = work.budget(device)
        kept = budget // KEPT_SHARE if keep else 0
        if side.plan is None and not problem.linear:  # hooks do not see all that the parameters do
            each = problem.p * torch.finfo(problem.dtype).bits // 8
            order = torch.arange(problem.p, device=device)
            return cls(side, lambda rows: [side.gradients(rows)], order, each, side.batch_size, kept)
        plan = parted(side)
        cotangents = side.residual[:, None, :]
        one = catch_rows(side, plan, slice(0, 1), cotangents[:1])
        step = pass_size(one)

        def read(rows: slice) -> Sequence[Part]:
            caught = catch_rows(side, plan, rows, cotangents[rows], step)
            return [*caught.pairs, caught.written] if caught.written.shape[1] else caught.pairs

        pairs, written = places(problem, plan)
        order = torch.cat([*(place.flatten() for place in pairs), written])
        return cls(side, read, order, one.nbytes, read_size(one.nbytes, budget), kept)

    def arranged(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Vectors as `times` takes them.

        Args:
            V: Vectors in rows.

        Returns:
            The same numbers in the order of the parts; contiguous along k.
        """
        return V.T[self.order].T

    def times(self, V: Float[Tensor, "k p"], examples: slice) -> Float[Tensor, "k c"]:
        """Products of vectors with the gradients of some examples.

        Args:
            V: What `arranged` gave.
            examples: Which ones.

        Returns:
            V G^T, in the type of V.
        """
        out = V.new_empty(len(V), examples.stop - examples.start)
        for rows, parts in self._blocks(examples):
            tile, at = out[:, rows.start - examples.start : rows.stop - examples.start], 0
            for number, part in enumerate(parts):
                v = V[:, at : at + width(part)].T
                at += v.shape[0]
                found = _by_pair(part, v) if isinstance(part, Pair) else product(v.T, part.to(V.dtype).T)
                tile.copy_(found) if number == 0 else tile.add_(found)
        return out

    def packed(self, rows: slice, *, unit: bool = False) -> Float[Tensor, "b k"]:
        """Gradients as `dots` takes them: inputs and output gradients of every pair, and pieces as they are.

        Args:
            rows: Which examples.
            unit: Divide each gradient by its length; one of length zero stays zero.

        Returns:
            One row an example.
        """
        done = []
        for _, parts in self._blocks(rows):
            columns = []
            for part in parts:
                own = [part.U[:, 0], part.D[:, 0, 0]] if isinstance(part, Pair) else [part]
                columns += [*own[:-1], own[-1] / _lengths(parts).to(own[-1].dtype)[:, None]] if unit else own
            done.append(torch.cat(columns, dim=1))
        return done[0] if len(done) == 1 else torch.cat(done)

    def dots(self, packed: Float[Tensor, "b k"], examples: slice, *, unit: bool = False) -> Float[Tensor, "b c"]:
        """Inner products of other gradients with those of some examples.

        Args:
            packed: What `packed` gave, of gradients of the same network.
            examples: Which ones.
            unit: Divide each gradient of these by its length.

        Returns:
            One number for every pair of gradients.
        """
        out = packed.new_empty(len(packed), examples.stop - examples.start)
        for rows, parts in self._blocks(examples):
            tile, at = out[:, rows.start - examples.start : rows.stop - examples.start], 0
            for number, part in enumerate(parts):
                own, *other = [part.U[:, 0], part.D[:, 0, 0]] if isinstance(part, Pair) else [part]
                found = product(packed[:, at : at + own.shape[1]], own.T)
                at += own.shape[1]
                for one in other:
                    found.mul_(product(packed[:, at : at + one.shape[1]], one.T))
                    at += one.shape[1]
                tile.copy_(found) if number == 0 else tile.add_(found)
            if unit:
                tile /= _lengths(parts).to(tile.dtype)
        return out

    def _blocks(self, examples: slice) -> Iterator[tuple[slice, Sequence[Part]]]:
        """Examples and their parts; of a block that is not kept those asked for alone are read."""
        at = examples.start
        while at < examples.stop:
            begin = at - at % self.block
            end = min(begin + self.block, len(self.side))
            rows = slice(at, min(end, examples.stop))
            if begin not in self._kept and self._bytes + (end - begin) * self.each <= self.keep:
                self._kept[begin] = self.read(slice(begin, end))
                self._bytes += (end - begin) * self.each
            if begin in self._kept:
                yield rows, [_some(part, rows.start - begin, rows.stop - begin) for part in self._kept[begin]]
            else:
                yield rows, self.read(rows)
            at = rows.stop


def parted(side: Side) -> Plan:
    """What is read off which layer: pairs of linear layers that see one vector an example, all else written out.

    Args:
        side: Train set or queries, whose layers can be read, or whose problem is linear.

    Returns:
        The plan.
    """
    if side.plan is None:
        return Plan({}, (), {})
    problem, seen = side.problem, dict.fromkeys(side.plan.layers, 0)

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        seen[name] += 1 if inputs[0].ndim == 2 else 2

    with ExitStack() as stack, torch.no_grad():
        for name in side.plan.layers:
            module = problem.model.get_submodule(name)
            if isinstance(module, nn.Linear):
                handle = module.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
                stack.callback(handle.remove)
        problem.logits(problem.theta, side.inputs(slice(0, 1)))
    return Plan(side.plan.layers, side.plan.other, {name: "parts" for name, count in seen.items() if count == 1})


def read_size(each: int, budget: int) -> int:
    """Examples that are read at once.

    Args:
        each: Bytes of the parts of one.
        budget: Bytes that may be taken.

    Returns:
        Between 1 and 512.
    """
    return max(1, min(512, min(BLOCK_BYTES, budget // 8) // max(each, 1)))


def part_bytes(part: Part) -> int:
    """Memory of a part.

    Args:
        part: The part.

    Returns:
        Bytes.
    """
    return part.U.nbytes + part.D.nbytes if isinstance(part, Pair) else part.nbytes


def width(part: Part) -> int:
    """Parameters that a part stands for.

    Args:
        part: The part.

    Returns:
        Their number.
    """
    return part.width if isinstance(part, Pair) else part.shape[1]


def _some(part: Part, begin: int, end: int) -> Part:
    return Pair(part.U[begin:end], part.D[begin:end]) if isinstance(part, Pair) else part[begin:end]


def _by_pair(pair: Pair, v: Float[Tensor, "w k"]) -> Float[Tensor, "k c"]:
    """d^T V u of every example: U V for all k at once, some examples at a time, and each of their d after it."""
    U, D = pair.U[:, 0].to(v.dtype), pair.D[:, 0].to(v.dtype)  # [c, in], [c, 1, out]
    (c, ins), outs, k = U.shape, D.shape[2], v.shape[1]
    V = v.reshape(ins, outs * k)
    step = max(1, FLIGHT_BYTES // (V.element_size() * outs * k))
    found = v.new_empty(c, 1, k)
    for at in range(0, c, step):
        few = slice(at, min(at + step, c))
        torch.bmm(D[few], product(U[few], V).view(-1, outs, k), out=found[few])
    return found[:, 0].T


def _lengths(parts: Sequence[Part]) -> Float[Tensor, " b"]:
    """Euclidean lengths, infinite in place of zero; float64, where the square of a small float32 is not zero."""
    norm, dtype = torch.linalg.vector_norm, torch.float64
    own = [
        norm(part.U[:, 0], dim=1, dtype=dtype) * norm(part.D[:, 0, 0], dim=1, dtype=dtype)
        if isinstance(part, Pair)
        else norm(part, dim=1, dtype=dtype)
        for part in parts
    ]
    whole = norm(torch.stack(own), dim=0)
    return torch.where(whole > 0, whole, torch.inf)
