"""Fitting Kronecker factors: two sums over the train set, the second in the bases that the first one gives.

With rows A_i^a = sum_t D_it^a (x) U_it of a linear map, n examples and T positions, the first sum is

    Omega = (1/n) sum_it U_it U_it^T  [in, in],     Gamma = (1/T) sum_iat D_it^a D_it^aT  [out, out]   (the 1/n lies in D)

and K-FAC takes Gamma (x) Omega for the block. The second is the mean square of every entry of V_out^T A_i^a V_in, EK-FAC's
eigenvalues: of all matrices that these bases diagonalise the closest to the exact block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import normal_matrix, product
from .errors import SolveError
from .factors import Factor
from .kronecker import DENSE_LIMIT, Block, KroneckerMatrix, Others, kronecker_plan, layout, taken_apart, working_type
from .rowset import RowSet, row_set
from .side import Side
from .solve import eigendecompose
from .work import Work

Kind = Literal["kfac", "ekfac", "diagonal"]
SQUARED_BYTES = 2**24  # of rows that are squared at once


def fit_kronecker(
    train: Side, factor: Factor, kind: Kind, others: Others | Literal["either"], work: Work
) -> KroneckerMatrix:
    """Approximate the mean curvature of a train set, block by block.

    Args:
        train: The train set, examined.
        factor: Cotangents of the rows whose products make the curvature.
        kind: "kfac", "ekfac", or "diagonal": no bases, the exact diagonal.
        others: What to do with parameters of no linear map: "dense", the exact block of each layer; "diagonal"; "skip"; or
            "either", dense where a block is small enough.
        work: Memory, keeper of tiles, whom to tell.

    Returns:
        The curvature in its bases.

    Raises:
        SolveError: A layer has too many parameters for what it is to have.
    """
    plan, left_out = kronecker_plan(train, skip=others == "skip")
    blocks = layout(train.problem, plan)
    device = train.logits.device
    if others == "dense":
        _check_dense(train, blocks)
    _check_memory(blocks, kind, work.room(device))
    rows = row_set(train, plan, factor.cotangents, work)
    first = None if kind == "diagonal" else _factors(rows, blocks, others, work, 2 if kind == "ekfac" else 1)
    lams = []
    if first is not None:
        turned = [
            _decomposed(block, *sums, working_type(train.problem)) for block, sums in zip(blocks, first, strict=True)
        ]
        blocks, lams = [block for block, _ in turned], [lam for _, lam in turned]
    if kind != "kfac":
        lams = _mean_squares(rows, blocks, work)
    lam = torch.cat([one.flatten() for one in lams]).clamp(min=0)
    alone = [block.name for block in blocks if not block.map and block.V_in is None]
    return KroneckerMatrix(train, plan, rows.step, blocks, lam, left_out, alone)


def _check_dense(train: Side, blocks: Sequence[Block]) -> None:
    for block in blocks:
        if not block.map and block.size > DENSE_LIMIT:
            layer = dict(train.problem.model.named_modules()).get(block.name)
            kind = "Parameter" if layer is None else type(layer).__name__
            raise SolveError(
                f"{kind} {block.name!r} has {block.size:,} analysed parameters that no Kronecker product approximates, and a "
                f"dense block may have {DENSE_LIMIT:,}; take others='diagonal' or 'skip', or leave it out of `parameters`."
            )


def _check_memory(blocks: Sequence[Block], kind: Kind, room: int) -> None:
    """Bases and what they are decomposed from, in float64, beside the eigenvalues."""
    total = sum(8 * block.size for block in blocks)
    for block in blocks:
        outs, ins = block.place.shape
        total += 0 if kind == "diagonal" else 8 * (outs**2 + ins**2)
        need = total + (0 if kind == "diagonal" else 24 * max(outs, ins) ** 2)
        if need > room:
            raise SolveError(
                f"The Kronecker factors up to layer {block.name!r} [{outs}, {ins}] take {need / 2**30:.1f} GiB, and there are "
                f"{room / 2**30:.1f}; analyse fewer parameters."
            )


def _factors(
    rows: RowSet, blocks: Sequence[Block], others: str, work: Work, sweeps: int
) -> list[tuple[Tensor, Tensor]]:
    """Gamma and Omega of every block; of parameters written out a 1 and their own matrix, or its diagonal."""
    sums = []
    for block in blocks:
        outs, ins = block.place.shape
        whole = block.map or (others != "diagonal" and ins <= DENSE_LIMIT)
        shape = (ins, ins) if whole else (ins,)
        sums.append((rows.cotangents.new_zeros(outs, outs), rows.cotangents.new_zeros(shape)))
    for done, examples in enumerate(rows.blocks, 1):
        for (block, U, D), (gamma, omega) in zip(taken_apart(rows.caught(examples), blocks), sums, strict=True):
            if not block.map:
                omega += normal_matrix(U[:, 0]) if omega.ndim == 2 else U[:, 0].square().sum(0)
                continue
            omega += normal_matrix(U.reshape(-1, U.shape[2])) / len(rows.side)
            gamma += normal_matrix(D.reshape(-1, D.shape[3])) / U.shape[1]
        if work.told is not None:
            work.told(done, sweeps * len(rows.blocks))
    return sums


def _decomposed(block: Block, gamma: Tensor, omega: Tensor, dtype: torch.dtype) -> tuple[Block, Tensor]:
    """A block with its bases, and the eigenvalues of the product of its factors."""
    if omega.ndim == 1:
        return block, omega[None]
    eps = torch.finfo(dtype).eps
    inner = eigendecompose(omega, eps)
    if not block.map:
        return replace(block, V_in=inner.V.to(dtype)), inner.lam[None]
    outer = eigendecompose(gamma, eps)
    lam = outer.lam.clamp(min=0)[:, None] * inner.lam.clamp(min=0)
    return replace(block, V_out=outer.V.to(dtype), V_in=inner.V.to(dtype)), lam


def _mean_squares(rows: RowSet, blocks: Sequence[Block], work: Work) -> list[Tensor]:
    """The diagonal of the exact curvature in the bases of the blocks [out, in]."""
    lams = [rows.cotangents.new_zeros(block.place.shape) for block in blocks]
    sweeps = len(rows.blocks)
    for done, examples in enumerate(rows.blocks, 1):
        for (block, U, D), lam in zip(taken_apart(rows.caught(examples), blocks), lams, strict=True):
            U = U if block.V_in is None else U @ block.V_in
            D = D if block.V_out is None else D @ block.V_out
            lam += squares(U, D)
        if work.told is not None:
            work.told(sweeps + done, 2 * sweeps)
    return lams


def squares(U: Float[Tensor, "b T in"], D: Float[Tensor, "b R T out"]) -> Float[Tensor, "out in"]:
    """The sum over examples and rows of the squared entries of sum_t D_t (x) U_t.

    At one position it is one product of squares; at few, products of pairs of positions, D_t D_s and U_t U_s, are summed over
    the rows before they meet; at many the rows are written out, some at a time.

    Args:
        U: Inputs.
        D: Gradients at the output.

    Returns:
        The sums, float64.
    """
    _, R, T, outs = D.shape
    ins = U.shape[2]
    if T == 1:
        return product(D[:, :, 0].square().sum(1).T.contiguous(), U[:, 0].square()).double()
    paired = T + 1 <= 2 * R
    one = D.element_size() * (R * T * (T + 1) // 2 * outs + T * (T + 1) // 2 * ins if paired else R * outs * ins)
    step = max(1, SQUARED_BYTES // one)
    total = torch.zeros(outs, ins, dtype=torch.float64, device=U.device)
    for at in range(0, len(U), step):
        few = slice(at, at + step)
        total += _of_pairs(U[few], D[few]) if paired else _of_rows(U[few], D[few])
    return total


def _of_pairs(U: Tensor, D: Tensor) -> Tensor:
    t, s = torch.triu_indices(U.shape[1], U.shape[1], device=U.device)
    both = (D[:, :, t] * D[:, :, s]).sum(1) * torch.where(t == s, 1.0, 2.0).to(D)[:, None]  # [b, pairs, out]
    return product(both.flatten(0, 1).T.contiguous(), (U[:, t] * U[:, s]).flatten(0, 1)).double()


def _of_rows(U: Tensor, D: Tensor) -> Tensor:
    b, R, T, outs = D.shape
    rows = torch.bmm(U.mT, D.transpose(1, 2).reshape(b, T, R * outs))  # [b, in, R out]
    return rows.square_().sum(0).view(-1, R, outs).sum(1).T.double()
