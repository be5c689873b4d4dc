"""The Gauss-Newton matrix times vectors by way of its rows: A^T (A V), layer by layer, from rows that are caught once.

A row's part in a linear map is D^T U; A V needs it written out only where that is cheaper than U V first and D after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blas import product
from .factors import make_factor
from .layers import Caught, Plan, Way, catch, places
from .products import Kind, Products
from .rowset import KEPT_SHARE, RowSet, row_set
from .side import Side
from .work import ANY, Work

Operator = Callable[[Float[Tensor, "p b"]], Float[Tensor, "p b"]]
FLIGHT_BYTES = 2**26  # of U V of some examples


@dataclass(slots=True, eq=False)
class RowProducts:
    """V -> H V for the mean Gauss-Newton matrix."""

    rows: RowSet
    pairs: list[Int[Tensor, "_ _"]]
    """Places in theta of the weights (and biases) that each pair of the rows stands for, [in, out]."""
    written: Int[Tensor, " q"]
    """Places in theta of the columns that are written out."""

    def __call__(self, V: Float[Tensor, "p b"]) -> Float[Tensor, "p b"]:
        """H V.

        Args:
            V: Vectors in the order of `Problem.flatten`; any floating type.

        Returns:
            The products; rows are multiplied in the type of the problem, and added up in float64.
        """
        problem, k = self.rows.side.problem, V.shape[1]
        V = V.to(problem.dtype)
        parts = [V[at.flatten()].view(len(at), -1) for at in self.pairs]  # [in, out b]
        rest = V[self.written]
        out = torch.zeros(V.shape, dtype=torch.float64, device=V.device)
        for block in self.rows.blocks:
            caught = self.rows.caught(block)
            for few in _in_flight(caught, k):
                Y = few.written @ rest if len(self.written) else V.new_zeros(few.b * few.R, k)
                for pair, v in zip(few.pairs, parts, strict=True):
                    UV = product(pair.U.flatten(0, 1), v).view(few.b, -1, k)
                    Y += (pair.D.flatten(2) @ UV).view(-1, k)
                for pair, at in zip(few.pairs, self.pairs, strict=True):
                    DY = (pair.D.flatten(2).mT @ Y.view(few.b, -1, k)).view(few.b * pair.U.shape[1], -1)
                    out[at.flatten()] += product(pair.U.flatten(0, 1).T, DY).view(-1, k)
                if len(self.written):
                    out[self.written] += product(few.written.T, Y)
        return out


def mean_products(train: Side, kind: Kind = "ggn", *, columns: int, sweeps: int = 1, work: Work = ANY) -> Operator:
    """The mean curvature as an operator, the faster way: through its rows, or by torch.func.

    Args:
        train: The train set, examined.
        kind: "ggn" or "hessian".
        columns: Vectors that will be multiplied at a time.
        sweeps: How often.
        work: Memory, of which caught rows take a part.

    Returns:
        V -> H V, for vectors in the order of `Problem.flatten`, to float64.
    """
    by_func = Products(train, kind)  # refuses what it cannot take
    R = train.num_classes - 1
    if kind == "hessian" or train.plan is None or train.problem.linear:
        return by_func
    keep = work.budget(train.logits.device) // KEPT_SHARE
    plan = Plan(train.plan.layers, train.plan.other, _ways(train, R, columns * sweeps, keep))
    rows = row_set(train, plan, make_factor("logits", train.logits, train.target, samples=1, seed=0).cotangents, work)
    kept = rows.caught(rows.blocks[0]).nbytes * len(rows.blocks) <= keep
    # a row costs a pass back through the network, and a product by torch.func two there and back
    if columns * (sweeps if kept else 1) < R:
        return by_func
    return RowProducts(rows, *places(train.problem, plan))


def _ways(side: Side, R: int, vectors: int, keep: int) -> Mapping[str, Way]:
    """For every layer, whether products with vectors are cheaper from written rows, from counted operations."""
    assert side.plan is not None  # `mean_products` looked
    ways: dict[str, Way] = {}
    one, mix = side.inputs(slice(0, 1)), torch.ones(1, 1, side.num_classes, device=side.logits.device)
    for name, shorts in side.plan.layers.items():
        pairs = catch(side.problem, Plan({name: shorts}, (), {name: "parts"}), one, mix).pairs
        by_parts = sum(pair.U.shape[1] * (pair.width + R * pair.D.shape[3]) for pair in pairs)
        writing = sum(R * pair.U.shape[1] * pair.width for pair in pairs)
        by_rows = sum(R * pair.width for pair in pairs) + writing / (2 * vectors)
        item = torch.finfo(side.problem.dtype).bits // 8
        fits = len(side) * sum(R * pair.width for pair in pairs) * item <= keep
        ways[name] = "rows" if by_rows < by_parts and fits else "parts"
    return ways


def _in_flight(caught: Caught, vectors: int) -> list[Caught]:
    """A block in pieces small enough for U V."""
    widest = max([pair.U.shape[1] * pair.D.shape[3] for pair in caught.pairs], default=1)
    step = max(1, FLIGHT_BYTES // (caught.written.element_size() * widest * vectors))
    return [caught] if step >= caught.b else [caught.part(i, i + step) for i in range(0, caught.b, step)]
