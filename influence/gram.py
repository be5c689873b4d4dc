"""Inner products of rows, tile by tile: K = A A^T and M = A G^T without ever holding all of A."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import times_transposed
from .layers import Caught, NotPerExampleError, Pair, Plan, catch, plan_layers, rows_by_torch_func
from .problem import Problem
from .side import Side

BLOCK_BYTES = 2**26  # of rows caught at once
KEPT_BYTES = 2**31  # caught blocks up to this size in all are kept for the sweep
BYTES_TO_FLOPS = 10  # a byte moved costs about as much as so many operations of a matrix product


@dataclass(slots=True, eq=False)
class RowSet:
    """The rows of a side, caught block by block; kept where all of them fit.

    Args:
        side: The examples.
        plan: What is read off which layer.
        cotangents: [n, R, C].
        block: Examples in a block.
    """

    side: Side
    plan: Plan
    cotangents: Float[Tensor, "n R C"]
    block: int
    _kept: dict[int, Caught] = field(default_factory=dict)
    _bytes: int = 0
    _last: tuple[object, slice, Tensor] | None = None

    @property
    def R(self) -> int:
        """Rows an example."""
        return self.cotangents.shape[1]

    @property
    def blocks(self) -> list[slice]:
        """Examples of every block."""
        n = len(self.side)
        return [slice(start, min(start + self.block, n)) for start in range(0, n, self.block)]

    def caught(self, examples: slice) -> Caught:
        """The rows of a block.

        Args:
            examples: One of `blocks`.

        Returns:
            Its rows, from memory where they were kept.
        """
        if examples.start in self._kept:
            return self._kept[examples.start]
        rows = catch_rows(self.side, self.plan, examples, self.cotangents[examples])
        if self._bytes + rows.nbytes <= KEPT_BYTES:
            self._kept[examples.start] = rows
            self._bytes += rows.nbytes
        return rows


def catch_rows(side: Side, plan: Plan, examples: slice, cotangents: Float[Tensor, "b R C"]) -> Caught:
    """Rows of some examples of a side.

    Args:
        side: Train set or queries.
        plan: What is read off which layer.
        examples: Which ones.
        cotangents: Theirs.

    Returns:
        The rows, layer by layer.
    """
    if not side.problem.linear:
        return catch(side.problem, plan, side.inputs(examples), cotangents)
    from .head import augmented

    phi = augmented(side, examples)  # the head alone: its input is known, and its output gradient is the cotangent
    b, R, _ = cotangents.shape
    return Caught([Pair(phi[:, None, :], cotangents[:, :, None, :])], phi.new_empty(b * R, 0), b, R)


def make_plan(side: Side, R: int, *, write_all: bool = False) -> Plan:
    """Decide, from counted operations and bytes, which layers are better not written out.

    Args:
        side: The train set.
        R: Rows an example.
        write_all: Write every layer out: the primal form needs the rows themselves.

    Returns:
        The plan.
    """
    problem = side.problem
    if problem.linear:
        return Plan({}, (), {})
    layers, other = plan_layers(problem)
    while True:
        try:
            plan = Plan(layers, other, {} if write_all else _ghosts(side, layers, R))
            if _agrees(side, plan):
                return plan
            return Plan({}, tuple(problem.theta), {})
        except NotPerExampleError as error:  # positions folded into the batch, for one: leave that layer to torch.func
            (name,) = error.args
            other = (*other, *(f"{name}.{short}" if name else short for short in layers.pop(name)))


def _ghosts(side: Side, layers: Mapping[str, tuple[str, ...]], R: int) -> dict[str, bool]:
    """For every layer, whether its inner products are better taken without writing its rows out."""
    one = slice(0, 1)
    mix = torch.ones(1, 1, side.num_classes, device=side.logits.device)
    ghost = {}
    for name in layers:
        pairs = catch(side.problem, Plan({name: layers[name]}, (), {name: True}), side.inputs(one), mix).pairs
        ghost[name] = bool(pairs) and all(_ghost_wins(pair, R) for pair in pairs)
    return ghost


def _agrees(side: Side, plan: Plan) -> bool:
    """Whether hooks see all that the parameters do: a weight that is also read outside its layer fools them."""
    examples = slice(0, min(2, len(side)))
    z = side.inputs(examples)
    mix = torch.linspace(1, 2, side.num_classes, dtype=side.problem.dtype, device=z.device).expand(len(z), 1, -1)
    caught = inner(*[catch(side.problem, plan, z, mix)] * 2)
    written = rows_by_torch_func(side.problem, tuple(side.problem.theta), z, mix)[:, 0]
    wanted = (written @ written.T).double()
    return bool((caught - wanted).abs().max() <= torch.finfo(side.problem.dtype).eps ** 0.5 * wanted.abs().max())


def _ghost_wins(pair: Pair, R: int) -> bool:
    """Whether inner products from U and D cost less than from written rows, for a pair of examples with R rows each."""
    _, T, inputs = pair.U.shape
    out = pair.D.shape[3]
    from_parts = 2 * T * T * (inputs + R * R * (out + 1)) + BYTES_TO_FLOPS * 12 * R * R * T * T
    written = 2 * R * R * inputs * out + (0 if T == 1 else 2 * T * inputs * out * R // 64)
    return from_parts < written


def block_size(side: Side, plan: Plan, R: int) -> int:
    """Examples in a block, so that their rows stay within a budget of memory.

    Args:
        side: The train set.
        plan: What is read off which layer.
        R: Rows an example.

    Returns:
        Between 1 and 512.
    """
    one = torch.ones(1, R, side.num_classes, dtype=torch.float64, device=side.logits.device)
    size = catch_rows(side, plan, slice(0, 1), one).nbytes
    return max(1, min(512, len(side), BLOCK_BYTES // max(size, 1)))


def inner(A: Caught, B: Caught) -> Float[Tensor, "aR bR"]:
    """Inner products of all rows of two blocks.

    Args:
        A: Rows [a R, p].
        B: Rows [b R', p].

    Returns:
        [a R, b R'], float64: products in the rows' own type, layers added up in float64.
    """
    out = times_transposed(A.written, B.written).double()
    for left, right in zip(A.pairs, B.pairs, strict=True):
        out += _pair_inner(left, right)
    return out


def _pair_inner(A: Pair, B: Pair) -> Tensor:
    """The sum over t, s of (D_t . D'_s)(U_t . U'_s), for every pair of rows."""
    a, R, T, out = A.D.shape
    b, S, V, _ = B.D.shape
    if T == V == 1:
        UU = times_transposed(A.U[:, 0], B.U[:, 0])
        DD = times_transposed(A.D.reshape(a * R, out), B.D.reshape(b * S, out)).view(a, R, b, S)
        return (DD * UU[:, None, :, None]).reshape(a * R, b * S).double()
    result = A.D.new_empty(a, R, b, S, dtype=torch.float64)
    UU = torch.einsum("ati,bvi->atbv", A.U, B.U)
    for i in range(a):  # all pairs at once would hold (R T)^2 numbers for each
        DD = torch.einsum("rto,bsvo->rtbsv", A.D[i], B.D)
        result[i] = torch.einsum("rtbsv,tbv->rbs", DD, UU[i]).double()
    return result.reshape(a * R, b * S)


def gram(rows: RowSet, told: Callable[[int, int], None] | None = None) -> Float[Tensor, "N N"]:
    """K = A A^T: tiles of the lower triangle, mirrored.

    Args:
        rows: The rows.
        told: Called with tiles done and their number.

    Returns:
        K, symmetric, float64; row a of example i lies at i R + a.
    """
    N = len(rows.side) * rows.R
    K = torch.empty(N, N, dtype=torch.float64, device=rows.side.logits.device)
    blocks = rows.blocks
    total, done = len(blocks) * (len(blocks) + 1) // 2, 0
    for i, examples in enumerate(blocks):
        A = rows.caught(examples)
        for others in blocks[: i + 1]:
            tile = inner(A, A if others is examples else rows.caught(others))
            here, there = _span(examples, rows.R), _span(others, rows.R)
            K[here, there] = tile
            K[there, here] = tile.T
            done += 1
            if told is not None:
                told(done, total)
    return K


def cross_gram(rows: RowSet, side: Side, examples: slice, cotangents: Float[Tensor, "b R C"]) -> Float[Tensor, "N bR"]:
    """M = A G^T for a block of other examples.

    Args:
        rows: The rows of A.
        side: The side that G belongs to.
        examples: Which of its examples.
        cotangents: Theirs; the residual alone gives the loss gradient.

    Returns:
        M, float64.
    """
    if rows._last is not None and rows._last[0] is side and rows._last[1] == examples:
        return rows._last[2]  # the same queries at another damping
    G = catch_rows(side, rows.plan, examples, cotangents)
    M = torch.cat([inner(rows.caught(block), G) for block in rows.blocks])
    rows._last = (side, examples, M)
    return M


def written_rows(rows: RowSet) -> Iterator[tuple[slice, Float[Tensor, "bR p"]]]:
    """The rows themselves, block by block, for the primal form.

    Args:
        rows: With a plan that writes every layer out.

    Yields:
        Examples and their rows, float64.
    """
    for examples in rows.blocks:
        yield examples, full_rows(rows.caught(examples))


def full_rows(caught: Caught) -> Float[Tensor, "bR p"]:
    """Rows with every layer written out; the order of the columns is that of the plan, for every block of any side.

    Args:
        caught: Rows of a block.

    Returns:
        float64.
    """
    parts = [*(pair.rows() for pair in caught.pairs), caught.written]
    return torch.cat(parts, dim=1).double()


def _span(examples: slice, R: int) -> slice:
    return slice(examples.start * R, examples.stop * R)


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
