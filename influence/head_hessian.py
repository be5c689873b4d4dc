"""The mean Hessian of softmax cross-entropy in the last linear layer: assembled in tiles, applied, and led to its eigenbasis.

All softmax Hessians S_i are blind to a common shift of the logits, so one class, the reference, is left out: with P the
columns of the identity of the other c = C-1 classes and r any residual (its entries sum to zero), r^T S^+ r becomes
(P^T r)^T (P^T S P)^-1 (P^T r). Every block of (1/n) sum_i (P^T S_i P) (x) psi_i psi_i^T is then plus or minus a matrix times
its own transpose, because (S_i)_ab = -q_a q_b: half the operations of a general product, for each of the c (c+1) / 2. Damping
every eigenvalue of the full Hessian by lam adds lam (I - 1 1^T / C) (x) I here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blas import normal_matrix, product, threads_for
from .rows import contrasts
from .tiles import Tiles

TILE = 2_048  # rows of a tile to aim at: large enough for BLAS, small enough to leave the upper half of the matrix out
APPLY_BYTES = 2**27
CHUNK = 128


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
        scratch = torch.empty_like(psi)
        rows = []
        with threads_for(n * k * k):
            for i, high in enumerate(self.groups):
                row = [psi.new_empty(_length(high) * k, _length(low) * k) for low in self.groups[: i + 1]]
                for a in range(high.start, high.stop):
                    for j, low in enumerate(self.groups[: i + 1]):
                        for b in range(low.start, min(low.stop, a + 1)):
                            at = (a - high.start) * k, (b - low.start) * k
                            block = row[j][at[0] : at[0] + k, at[1] : at[1] + k]
                            self._block(a, b, damping, psi, scratch, block)
                rows.append(row)
        return Tiles(rows)

    def _block(self, a: int, b: int, damping: float, psi: Tensor, scratch: Tensor, out: Tensor) -> None:
        q, C = self.q, self.q.shape[1]
        class_a, class_b = self.keep[a], self.keep[b]
        s = q[:, class_a] * (self.rest[:, class_a] if a == b else q[:, class_b]) / len(q)
        torch.mul(psi, s.sqrt().to(psi.dtype)[:, None], out=scratch)
        normal_matrix(scratch, out)
        if a != b:
            out.neg_()
        if damping:
            out.diagonal().add_(damping * ((a == b) - 1 / C))

    def apply(self, X: Float[Tensor, "c k b"]) -> Float[Tensor, "c k b"]:
        """H times some vectors, from the features: 4 n c k operations each, and nothing of the size of H.

        Args:
            X: The vectors, float64.

        Returns:
            The products.
        """
        n = len(self.psi)
        out = torch.empty_like(X)
        step = max(1, APPLY_BYTES // (8 * n * self.c))
        for start in range(0, X.shape[2], step):
            at = slice(start, start + step)
            b = len(range(X.shape[2])[at])
            Z = X.new_empty(self.c, n, b)
            with threads_for(2 * b * self.psi.numel()):
                for a in range(self.c):
                    product(self.psi, X[a, :, at], Z[a])
                self._weigh(Z)
                for a in range(self.c):
                    product(self.psi.T, Z[a], out[a, :, at])
        return out

    def _weigh(self, Z: Float[Tensor, "c n b"]) -> None:
        """Z_i <- S_i Z_i / n in place: q_a (z_a - sum_b q_b z_b), measured from the most likely class of the example."""
        n, C = self.q.shape
        at = torch.arange(n, device=Z.device)
        position = torch.full((C,), -1, device=Z.device)
        position[self.keep] = torch.arange(self.c, device=Z.device)
        likely = position[self.q.argmax(1)]  # -1: the reference, whose own logit is zero
        q, reference = self.q.T[self.keep, :, None], self.q[:, position == -1]
        base = Z[likely, at] * (likely >= 0)[:, None]
        Z -= base  # no digits are lost where one class has nearly all of the probability
        mean = -reference * base
        for a in range(self.c):
            mean += q[a] * Z[a]
        Z -= mean
        Z *= q / n

    def dense_in_contrasts(self) -> Float[Tensor, "size size"]:
        """The whole Hessian in orthonormal contrasts, whose eigenvalues are those of the full one that are not zero.

        Returns:
            H', float64.
        """
        k = self.psi.shape[1]
        back = torch.linalg.inv(self.to_contrasts)
        H = self.assemble().dense()
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
