"""The mean Hessian of softmax cross-entropy in the last linear layer: assembled in tiles, applied, and led to its eigenbasis.

All softmax Hessians S_i are blind to a common shift of the logits, so one class, the reference, is left out: with P the
columns of the identity of the other c = C-1 classes and r any residual (its entries sum to zero), r^T S^+ r becomes
(P^T r)^T (P^T S P)^-1 (P^T r). Every block of (1/n) sum_i (P^T S_i P) (x) psi_i psi_i^T is then plus or minus a matrix times
its own transpose, because (S_i)_ab = -q_a q_b: half the operations of a general product, for each of the c (c+1) / 2. Damping
every eigenvalue of the full Hessian by lam adds lam (I - 1 1^T / C) (x) I here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blas import in_units, multiply, negate_, normal_matrix, product, side_by_side
from .rows import contrasts
from .tiles import Tiles

TILE = 2_048  # rows of a tile to aim at: large enough for BLAS, small enough to leave the upper half of the matrix out
APPLY_BYTES = 2**27
CHUNK = 128
PIECE_BYTES = 2**24  # of train gradients written out at once on each core: they stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class SoftmaxHessian:
    """H = (1/n) sum_i (P^T S_i P) (x) psi_i psi_i^T, of size c k, never formed unless asked for."""

    q: Float[Tensor, "n C"]
    """Softmax of the logits, float64."""
    rest: Float[Tensor, "n C"]
    """1 - q without cancellation."""
    psi: Float[Tensor, "n k"]
    """Features on their row space, float64."""
    keep: Int[Tensor, " c"]
    """The classes that are not the reference."""

    @property
    def c(self) -> int:
        """Number of logits that are left: one less than there are classes."""
        return len(self.keep)

    @property
    def size(self) -> int:
        """Rows of H."""
        return self.c * self.psi.shape[1]

    @property
    def groups(self) -> list[slice]:
        """The classes of each row of tiles, as positions in `keep`."""
        per_tile = max(1, round(TILE / self.psi.shape[1]))
        count = -(-self.c // per_tile)
        bounds = [round(i * self.c / count) for i in range(count + 1)]
        return [slice(a, b) for a, b in pairwise(bounds)]

    @property
    def to_contrasts(self) -> Float[Tensor, "c c"]:
        """Q: with H' the same Hessian in orthonormal contrasts of the logits, H = (Q^T (x) I) H' (Q (x) I)."""
        return contrasts(self.q.shape[1], self.q.device)[self.keep].T

    def assemble(self, damping: float = 0.0, dtype: torch.dtype = torch.float64) -> Tiles:
        """Form the lower half.

        Args:
            damping: Added to every eigenvalue of the Hessian in all logits.
            dtype: To compute and keep it in.

        Returns:
            The tiles, ready to be factored.
        """
        n, k = self.psi.shape
        psi = self.psi.to(dtype)
        rows = [
            [psi.new_empty(_length(a) * k, _length(b) * k) for b in self.groups[: i + 1]]
            for i, a in enumerate(self.groups)
        ]
        blocks = []
        for high, row in zip(self.groups, rows, strict=True):
            for low, tile in zip(self.groups, row, strict=False):
                for a in range(high.start, high.stop):
                    for b in range(low.start, min(low.stop, a + 1)):
                        down, across = (a - high.start) * k, (b - low.start) * k
                        blocks.append((a, b, tile[down : down + k, across : across + k]))
        # all roots in two calls: torch hands each to threads that wait for one another, however short it is
        roots = tuple((part.T[self.keep].contiguous() / n**0.5).sqrt() for part in (self.q, self.rest))
        scratch = threading.local()

        def fill(block: tuple[int, int, Tensor]) -> None:
            if not hasattr(scratch, "scaled"):
                scratch.scaled = torch.empty_like(psi)
            self._block(psi, (roots[0], roots[1]), scratch.scaled, *block)

        side_by_side(fill, blocks, n * k * k * len(blocks), psi.device)
        tiles = Tiles(rows)
        self.damp_(tiles, damping)
        return tiles

    def damp_(self, tiles: Tiles, damping: float) -> None:
        """Add a multiple of I - 1 1^T / C, the identity in all logits.

        Args:
            tiles: What `assemble` gave; changed.
            damping: Added to every eigenvalue of the Hessian in all logits.
        """
        k, C = self.psi.shape[1], self.q.shape[1]
        for high, row in zip(self.groups, tiles.rows, strict=True):
            for low, tile in zip(self.groups, row, strict=False):
                blocks = tile.view(_length(high), k, _length(low), k)
                blocks.diagonal(dim1=1, dim2=3).sub_(damping / C)
                if high == low:
                    tile.diagonal().add_(damping)

    def _block(self, psi: Tensor, roots: tuple[Tensor, Tensor], scaled: Tensor, a: int, b: int, out: Tensor) -> None:
        of_q, of_rest = roots
        s = of_q[a] * (of_rest[a] if a == b else of_q[b])
        normal_matrix(multiply(psi, s.to(psi.dtype)[:, None], scaled), out)
        if a != b:
            negate_(out)

    def apply(self, X: Float[Tensor, "c k b"]) -> Float[Tensor, "c k b"]:
        """H times some vectors, from the features: 4 n c k operations each, and nothing of the size of H.

        Args:
            X: The vectors, float64.

        Returns:
            The products.
        """
        n, k = self.psi.shape
        out = torch.empty_like(X)
        step = max(1, APPLY_BYTES // (8 * n * self.c))
        for start in range(0, X.shape[2], step):
            at = slice(start, start + step)
            columns = X[:, :, at].transpose(0, 1).reshape(k, -1)  # all classes in one product
            Z = product(self.psi, columns).view(n, self.c, -1)
            self._weigh(Z)
            out[:, :, at] = product(self.psi.T, Z.flatten(1)).view(k, self.c, -1).transpose(0, 1)
        return out

    def scores(
        self, X: Float[Tensor, "c k b"], r: Float[Tensor, "n c"], columns: slice = slice(None)
    ) -> Float[Tensor, "b n"]:
        """Vectors against the gradients r_i (x) psi_i of some train examples, which are written out in small pieces alone.

        Args:
            X: The vectors, in the type to compute in.
            r: Residuals of the train examples.
            columns: Which examples those are.

        Returns:
            sum_a r_i[a] (X_t[a] . psi_i).
        """
        psi = self.psi[columns]
        if X.dtype == torch.float64:
            return self._scores(X, psi, r)
        r, size = in_units(r.T[:, None], X.dtype)
        return self._scores(X, psi.to(X.dtype), r[:, 0].T) * size

    def _scores(self, X: Tensor, psi: Tensor, r: Tensor) -> Tensor:
        out = X.new_empty(X.shape[2], len(psi))
        flat = X.flatten(0, 1).T
        step = max(1, PIECE_BYTES // (flat.shape[1] * flat.element_size()))

        def fill(start: int) -> None:
            part = slice(start, min(start + step, len(psi)))
            G = psi.new_empty(part.stop - start, self.c, psi.shape[1])
            multiply(r[part, :, None], psi[part, None, :], G)
            product(flat, G.flatten(1).T, out[:, part])

        side_by_side(fill, range(0, len(psi), step), 2 * X.numel() * len(psi), X.device)
        return out

    def _weigh(self, Z: Float[Tensor, "n c b"]) -> None:
        """Z_i <- S_i Z_i / n in place: q_a (z_a - sum_b q_b z_b), measured from the most likely class of the example."""
        n, C = self.q.shape
        position = torch.full((C,), -1, device=Z.device)
        position[self.keep] = torch.arange(self.c, device=Z.device)
        likely = position[self.q.argmax(1)]  # -1: the reference, whose own logit is zero
        base = Z[torch.arange(n, device=Z.device), likely] * (likely >= 0)[:, None]
        Z -= base[:, None]  # no digits are lost where one class has nearly all of the probability
        q = self.q[:, self.keep]
        mean = torch.bmm(q[:, None, :], Z) - (self.q[:, position == -1] * base)[:, None]
        Z -= mean
        Z *= q[:, :, None] / n

    def dense_in_contrasts(self, tiles: Tiles) -> Float[Tensor, "size size"]:
        """The whole Hessian in orthonormal contrasts, whose eigenvalues are those of the full one that are not zero.

        Args:
            tiles: What `assemble` gave.

        Returns:
            H', float64.
        """
        k = self.psi.shape[1]
        back = torch.linalg.inv(self.to_contrasts)
        H = tiles.dense()
        columns, rows = H.view(self.size, self.c, k), H.view(self.c, k, self.size)
        for start in range(0, self.size, CHUNK):
            part = columns[start : start + CHUNK]
            part.copy_(torch.einsum("xbk,bd->xdk", part, back))
        for start in range(0, k, CHUNK):
            part = rows[:, start : start + CHUNK]
            part.copy_(torch.einsum("akx,ad->dkx", part, back))
        return H


def softmax_hessian(logits: Float[Tensor, "n C"], psi: Float[Tensor, "n k"]) -> SoftmaxHessian:
    """The Hessian of a train set.

    Args:
        logits: Outputs of the head.
        psi: Features, with a constant one where the bias is analysed, on their row space.

    Returns:
        The Hessian; the reference is the class with the most curvature, since what is left is then graded from the rare
        classes down and keeps their digits.
    """
    C = logits.shape[1]
    q = torch.softmax(logits.double(), dim=1)
    rest = q @ (1 - torch.eye(C, dtype=torch.float64, device=q.device))
    reference = int((q * rest).sum(0).argmax())
    keep = torch.tensor([a for a in range(C) if a != reference], device=q.device)
    return SoftmaxHessian(q, rest, psi.double(), keep)


def _length(classes: slice) -> int:
    return int(classes.stop - classes.start)
