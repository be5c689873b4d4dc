"""Inner products of rows, strip by strip: K = A A^T and M = A G^T without ever holding all of A."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import product, times_transposed
from .layers import Caught, Pair
from .problem import multiplying
from .rowset import RowSet, catch_rows
from .side import Side
from .work import ANY, Work

Precision = Literal["float32", "tf32", "bf16"]
TF32_BITS = 13  # of a float32 mantissa that a tf32 number does not have
GHOST_NUMBERS = 2**24  # of one step through the pairs of positions


def gram(rows: RowSet, products: Precision | torch.dtype, work: Work = ANY) -> Float[Tensor, "N N"]:
    """K = A A^T: strips of the lower triangle, mirrored.

    Args:
        rows: The rows.
        products: Type in which rows are multiplied; layers are added up in float64.
        work: Keeper of strips that were formed earlier, and whom to tell.

    Returns:
        K, symmetric, float64; row a of example i lies at i R + a.
    """
    K = torch.empty(rows.N, rows.N, dtype=torch.float64, device=rows.side.logits.device)
    for i, examples in enumerate(rows.blocks):
        here, until = rows.span(examples), slice(0, examples.stop * rows.R)
        strip = K[here, until]
        kept = None if work.tiles is None else work.tiles.get(f"gram-{i}")
        if kept is not None and kept.shape == tuple(strip.shape):
            strip.copy_(torch.from_numpy(kept))
        else:
            strip.zero_()
            _add_strip(rows, i, products, strip)
            if work.tiles is not None:
                work.tiles.put(f"gram-{i}", strip.cpu().numpy())
        K[: here.start, here] = strip[:, : here.start].T
        if work.told is not None:
            work.told(i + 1, len(rows.blocks))
    return K


def _add_strip(rows: RowSet, i: int, products: Precision | torch.dtype, strip: Tensor) -> None:
    """Add all inner products of block i with itself and those before it."""
    blocks = rows.blocks[: i + 1]
    left = rows.caught(blocks[i])
    for layer in range(len(left.pairs) + 1):
        A = _part(left, layer, products)
        if A is None:
            continue
        for others in blocks:
            B = A if others == blocks[i] else _part(rows.caught(others), layer, products)
            _add_products(A, B, products, strip[:, rows.span(others)])


def cross_gram(
    rows: RowSet, side: Side, examples: slice, cotangents: Float[Tensor, "b R C"], products: Precision | torch.dtype
) -> Float[Tensor, "N bR"]:
    """M = A G^T for a block of other examples.

    Args:
        rows: The rows of A.
        side: The side that G belongs to.
        examples: Which of its examples.
        cotangents: Theirs; the residual alone gives the loss gradient.
        products: Type in which rows are multiplied.

    Returns:
        M, float64.
    """
    G = catch_rows(side, rows.plan, examples, cotangents, rows.step)
    M = torch.zeros(rows.N, G.b * G.R, dtype=torch.float64, device=side.logits.device)
    for layer in range(len(G.pairs) + 1):
        B = _part(G, layer, products)
        if B is None:
            continue
        for block in rows.blocks:
            A = _part(rows.caught(block), layer, products)
            _add_products(A, B, products, M[rows.span(block)])
    return M


def pulled_back(rows: RowSet, X: Float[Tensor, "N b"]) -> list[Float[Tensor, "_ b"]]:
    """A^T X, layer by layer: with `pushed` the Gram matrix applied without being formed.

    Args:
        rows: The rows of A.
        X: Vectors.

    Returns:
        One matrix a layer, in the rows' own type.
    """
    total: list[Tensor] = []
    for block in rows.blocks:
        caught = rows.caught(block)
        part = X[rows.span(block)].to(rows.side.problem.dtype)
        found = [product(_written(caught, layer).T, part) for layer in range(len(caught.pairs) + 1)]
        total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
    return total


def pushed(rows: RowSet, V: Sequence[Float[Tensor, "_ b"]]) -> Float[Tensor, "N b"]:
    """A V for vectors in parameter space.

    Args:
        rows: The rows of A.
        V: One matrix a layer, as `pulled_back` gives them.

    Returns:
        The products, float64.
    """
    out = torch.zeros(rows.N, V[0].shape[1], dtype=torch.float64, device=rows.side.logits.device)
    for block in rows.blocks:
        caught = rows.caught(block)
        for layer, v in enumerate(V):
            out[rows.span(block)] += product(_written(caught, layer), v)
    return out


def _written(caught: Caught, layer: int) -> Tensor:
    """Rows of one layer; the last one stands for all that were written out when they were caught."""
    return caught.pairs[layer].rows() if layer < len(caught.pairs) else caught.written


def _part(caught: Caught, layer: int, products: Precision | torch.dtype) -> Tensor | Pair | None:
    """What inner products of a layer are taken from: rows, or their parts; None where there is nothing."""
    if layer < len(caught.pairs) and caught.pairs[layer].ghost:
        pair = caught.pairs[layer]
        if products == torch.float64:
            return Pair(pair.U.double(), pair.D.double(), ghost=True)
        return pair
    rows = _written(caught, layer)
    return rounded(rows, products) if rows.shape[1] else None


def rounded(rows: Tensor, products: Precision | torch.dtype) -> Tensor:
    """Rows as they enter a product.

    Args:
        rows: Rows in the type of the problem.
        products: "float32": as they are.

    Returns:
        bfloat16 on a GPU; elsewhere the numbers that the smaller type would hold, in their own.
    """
    if isinstance(products, torch.dtype):
        return rows.to(products)
    if products == "bf16":
        return rows.bfloat16() if rows.is_cuda else rows.bfloat16().to(rows.dtype)
    if products == "tf32" and not rows.is_cuda:  # to nearest: half a unit of what is left is added, the rest cut off
        bits = rows.float().contiguous().view(torch.int32)
        cut = (bits + (1 << (TF32_BITS - 1))) & ~((1 << TF32_BITS) - 1)
        return cut.view(torch.float32).to(rows.dtype)
    return rows


def _add_products(
    A: Tensor | Pair | None, B: Tensor | Pair | None, products: Precision | torch.dtype, out: Tensor
) -> None:
    """Add A B^T to `out`, in float64."""
    if isinstance(A, Pair):
        assert isinstance(B, Pair)  # both sides follow one plan
        _add_ghost(A, B, out)
        return
    assert isinstance(A, Tensor) and isinstance(B, Tensor)
    if A.dtype == torch.bfloat16:
        out += torch.mm(A, B.T, out_dtype=torch.float32)
    elif products == "tf32" and A.is_cuda:
        with multiplying("high"):
            out += times_transposed(A, B)
    else:
        out += times_transposed(A, B)


def _add_ghost(A: Pair, B: Pair, out: Tensor) -> None:
    """Add the sum over t, s of (D_t . D'_s)(U_t . U'_s), for every pair of rows."""
    a, R, T, width = A.D.shape
    b, S, V, _ = B.D.shape
    if T == V == 1:
        UU = times_transposed(A.U[:, 0], A.U[:, 0] if A is B else B.U[:, 0])
        left = A.D.reshape(a * R, width)
        DD = times_transposed(left, left if A is B else B.D.reshape(b * S, width))
        DD.view(a, R, b, S).mul_(UU[:, None, :, None])
        out += DD
        return
    UU = torch.einsum("ati,bvi->atbv", A.U, B.U)
    step = max(1, GHOST_NUMBERS // (R * T * b * S * V))  # all pairs at once would hold (R T)^2 numbers for each
    for i in range(0, a, step):
        part = slice(i, min(i + step, a))
        DD = torch.einsum("arto,bsvo->artbsv", A.D[part], B.D)
        found = torch.einsum("artbsv,atbv->arbs", DD, UU[part])
        out[part.start * R : part.stop * R] += found.reshape(-1, b * S)
