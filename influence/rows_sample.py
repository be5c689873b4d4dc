"""The rows of a train set of which only an example was caught: how many bytes, operations and seconds they take."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from .calibrate import count_flops, growing, seconds_of
from .factors import make_factor
from .gauss_newton import GaussNewton
from .layers import Caught
from .rowset import RowSet, catch_rows, make_plan, row_set, smaller_form
from .sample import Sampled, stretched
from .work import Work

F64 = torch.float64


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a train set that is only sampled."""

    sampled: Sampled
    held: RowSet
    """As long as the real ones; never caught as a whole."""
    form: Literal["primal", "dual"]
    products: Any
    one: Caught
    """Of one example."""
    catch: float
    """Seconds an example, its reading included."""
    catch_flops: float
    query: float
    """Likewise for a query."""
    query_flops: float
    question: Tensor
    """Cotangents of a query: its loss gradient, or the derivative of every logit [1, R', C]."""
    planned: float
    """Seconds that the plan itself took."""

    @property
    def n(self) -> int:
        """Train examples."""
        return self.sampled.n

    @property
    def R(self) -> int:
        """Rows an example."""
        return self.held.R

    @property
    def asked(self) -> int:
        """Rows of a query."""
        return self.question.shape[1]

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return self.n * self.R if self.form == "dual" else self.sampled.problem.p

    @property
    def unkept(self) -> int:
        """Blocks that memory does not hold, and that are caught again whenever they are needed."""
        held = self.held
        kept = int(held.keep // max(1, self.one.nbytes * held.block))
        return max(0, len(held.blocks) - kept)

    @property
    def nbytes(self) -> int:
        """Bytes of caught rows that are kept."""
        return min(self.held.keep, self.n * self.one.nbytes)

    def block(self, examples: int, blocks: int = 1) -> RowSet:
        """A few of the rows, caught already."""
        held, side = self.held, stretched(self.held.side, examples * blocks, self.held.side.batch_size)
        cotangents = held.cotangents[:1].expand(examples * blocks, *held.cotangents.shape[1:])
        few = RowSet(side, held.plan, cotangents, examples, held.step, 2**62)
        for block in few.blocks:
            few.caught(block)
        return few


def sample_rows(sampled: Sampled, curvature: GaussNewton, work: Work) -> Rows:
    """Plan the rows of a train set, and catch a few.

    Args:
        sampled: Both sides.
        curvature: What kind of rows, in which form.
        work: The budget of memory.

    Returns:
        Their plan, and what an example costs.
    """
    side, n = sampled.train, sampled.n
    one = slice(0, 1)
    factor = make_factor(
        curvature.rows, side.logits[one], side.target[one], samples=curvature.samples, seed=curvature.seed
    )
    R, C = factor.cotangents.shape[1:]
    form = smaller_form(sampled.problem, n, R) if curvature.form == "auto" else curvature.form
    cotangents = torch.linspace(-1, 1, R * C, dtype=F64, device=side.logits.device).view(1, R, C).expand(n, R, C)
    start = perf_counter()
    plan = make_plan(side, R, write_all=form == "primal")
    planned = perf_counter() - start
    held = row_set(side, plan, cotangents, work, whole=form == "primal")
    products = F64 if curvature._spectral else curvature.precision
    columns = torch.eye(C, dtype=F64, device=side.logits.device)[None] if curvature.leave_one_out == "loss" else None
    asked = side.residual[one][:, None, :] if columns is None else columns
    own = [
        _catching(held, cotangents, sampled.read),
        _catching(held, asked.expand(n, *asked.shape[1:]), sampled.read_query),
    ]
    caught = catch_rows(side, plan, one, cotangents[one], held.step)
    return Rows(sampled, held, form, products, caught, *own[0], *own[1], asked, planned)


def _catching(held: RowSet, cotangents: Tensor, read: float) -> tuple[float, float]:
    """Seconds and operations of catching an example's rows."""
    side, full = held.side, min(held.step, len(held.side))

    def call(count: int) -> Caught:
        return catch_rows(side, held.plan, slice(0, count), cotangents[:count], held.step)

    seconds = growing(lambda count: lambda: call(count), full) / full
    return seconds + read, float(count_flops(lambda: call(1)))


def pair_flops(one: Caught, R: int) -> float:
    """Operations of the inner products of one example's rows with those of another.

    Args:
        one: The rows of one example.
        R: Rows of the other.

    Returns:
        Two for each multiplication with its addition.
    """
    return sum(layer_flops(one, R))


def layer_flops(one: Caught, R: int) -> tuple[float, float]:
    """The same in two parts.

    Args:
        one: The rows of one example.
        R: Rows of the other.

    Returns:
        Of layers whose products with themselves take half the operations, and of those where they do not.
    """
    halved, whole = 2.0 * one.R * R * one.written.shape[1], 0.0
    for pair in one.pairs:
        _, T, inputs = pair.U.shape
        out = pair.D.shape[3]
        if not pair.ghost:
            halved += 2.0 * one.R * R * inputs * out
        elif T == 1:
            halved += 2.0 * (inputs + one.R * R * out)
        else:
            whole += 2.0 * T * T * (inputs + one.R * R * (out + 1))
    return halved, whole


def writing_flops(one: Caught) -> float:
    """Operations of writing out the rows of an example, where that is done for every product.

    Args:
        one: Its rows.

    Returns:
        Two for each multiplication with its addition.
    """
    sizes = [(pair.U.shape[1], pair.width) for pair in one.pairs if not pair.ghost]
    return sum(2.0 * one.R * T * width for T, width in sizes if T > 1)


def writing_seconds(rows: RowSet) -> float:
    """Seconds of the same, an example.

    Args:
        rows: One block, caught already.

    Returns:
        Seconds.
    """
    caught = rows.caught(rows.blocks[0])
    pairs = [pair for pair in caught.pairs if not pair.ghost]
    return seconds_of(lambda: [pair.rows() for pair in pairs], 0.5) / caught.b if pairs else 0.0
