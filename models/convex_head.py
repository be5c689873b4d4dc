"""Softmax regression on fixed features, to the optimum: what training the head alone would end at if it never stopped.

    f(theta) = mean over the kept examples of -log softmax(W phi + b)[y] + decay / 2 |theta|^2,     theta = (W, b)

in float64 from start to end, so that even what leaving one example of thousands out changes has its digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from .. import UsageError
from .errors import TrainingError

TOLERANCE = 1e-8
"""Longest gradient, in nats per unit of parameter, at which the optimum counts as reached."""
AIM = 1e-12
"""The length that is aimed at, a step further: in a flat direction `TOLERANCE` alone is of the size of what one example does."""
MAX_STEPS = 100
DENSE = 4096
"""Parameters up to which the whole Hessian at the start is factored; beyond, a bound of it that is a Kronecker product."""
_INNER = 500  # of the conjugate gradients, in one step
_ROUNDING = 1e-14  # relative error of the objective

Vector = NDArray[np.float64]
_Apply = Callable[[Vector], Vector]


class ConvexHead:
    """A linear head on fixed features, fitted to parts of them one after another.

    Args:
        features: Of all train examples.
        labels: Of all train examples; they decide the start, and each fit may have others.
        num_classes: Length of the logits.
        decay: Of weights and biases, above 0: without it there may be no optimum.
        start: Weights and biases to begin with [C, F + 1]; None: zero.

    Raises:
        UsageError: There is no decay.
    """

    def __init__(
        self,
        features: Float[Tensor, "n F"],
        labels: Int[NDArray[np.int64], " n"],
        num_classes: int,
        decay: float,
        start: Float[NDArray[np.float64], "C F+1"] | None = None,
    ) -> None:
        """Fit all examples: every other fit starts from there, with this Hessian as its measure of length."""
        if not decay > 0:
            raise UsageError(
                f"The weight decay is {decay}, and without one a head that separates its examples has no optimum; give a "
                "number above 0."
            )
        phi = features.detach().to("cpu", torch.float64).numpy()
        self.phi = np.concatenate([phi, np.ones((len(phi), 1))], axis=1)
        self.num_classes, self.decay = num_classes, decay
        every = np.ones(len(phi), dtype=np.bool_)
        begin = np.zeros(num_classes * self.phi.shape[1]) if start is None else start.reshape(-1).astype(np.float64)
        self._precondition = self._bound()
        self._start = self._minimise(_Objective(self, every, labels), begin)
        if len(begin) <= DENSE:
            self._precondition = self._hessian_at_start(_Objective(self, every, labels))

    def fit(
        self, kept: Bool[NDArray[np.bool_], " n"], labels: Int[NDArray[np.int64], " n"]
    ) -> Float[NDArray[np.float64], "C F+1"]:
        """The optimum over some examples.

        Args:
            kept: Which ones.
            labels: Of all.

        Returns:
            Weights and, in the last column, biases.
        """
        found = self._minimise(_Objective(self, kept, labels), self._start)
        return found.reshape(self.num_classes, -1)

    def _minimise(self, objective: _Objective, theta: Vector) -> Vector:
        """Newton's method, each step by conjugate gradients on this objective's own Hessian, preconditioned.

        Returns:
            The optimum.

        Raises:
            TrainingError: The gradient does not become as short as `TOLERANCE`.
        """
        size = len(theta)
        precondition = LinearOperator((size, size), matvec=self._precondition, dtype=np.float64)
        value, gradient = objective.at(theta)
        before = np.inf
        for _ in range(MAX_STEPS):
            length = float(np.linalg.norm(gradient))
            if length <= AIM or (length <= TOLERANCE and length > before / 2):  # rounding lets it get no shorter
                return theta
            before = length
            hessian = LinearOperator((size, size), matvec=objective.hessian_times(theta), dtype=np.float64)
            rtol = min(0.1, max(length, 1e-6))  # quadratic convergence near the optimum, little work far from it
            step, _ = cg(hessian, -gradient, rtol=rtol, atol=0.1 * AIM, maxiter=_INNER, M=precondition)
            moved = _line_search(objective, theta, value, float(gradient @ step), step)
            if moved is None:
                break
            theta, value, gradient = moved
        if np.linalg.norm(gradient) <= TOLERANCE:
            return theta
        raise TrainingError(
            f"The fit of the head did not reach its optimum: its gradient is {np.linalg.norm(gradient):.1e} and at most "
            f"{TOLERANCE:.0e} is wanted; give a larger weight decay than {self.decay:g}."
        )

    def _bound(self) -> _Apply:
        """Inverse of 1/2 (phi^T phi / n) x I + decay I, which no Hessian over these features exceeds (Boehning 1992)."""
        lam, V = linalg.eigh(self.phi.T @ self.phi / len(self.phi))
        scale = 1 / (0.5 * lam.clip(0) + self.decay)

        def apply(vector: Vector) -> Vector:
            Z = vector.reshape(self.num_classes, -1)
            out: Vector = ((Z @ V * scale) @ V.T).reshape(-1)
            return out

        return apply

    def _hessian_at_start(self, objective: _Objective) -> _Apply:
        q, n = objective.probabilities(self._start), len(self.phi)
        F = self.phi.shape[1]
        blocks = np.empty((self.num_classes, F, self.num_classes, F))
        for c in range(self.num_classes):
            for d in range(c + 1):
                weight = q[:, c] * ((c == d) - q[:, d]) / n
                blocks[c, :, d] = blocks[d, :, c] = self.phi.T @ (weight[:, None] * self.phi)
        H = blocks.reshape(self.num_classes * F, -1)
        H[np.diag_indices(len(H))] += self.decay
        factor = linalg.cho_factor(H, lower=True, overwrite_a=True)

        def apply(vector: Vector) -> Vector:
            out: Vector = linalg.cho_solve(factor, vector)
            return out

        return apply


class _Objective:
    """Mean loss over the kept examples, and the penalty."""

    def __init__(self, head: ConvexHead, kept: NDArray[np.bool_], labels: NDArray[np.int64]) -> None:
        self.phi, self.labels = head.phi[kept], labels[kept]
        self.num_classes, self.decay = head.num_classes, head.decay
        self.rows = np.arange(len(self.phi))

    def probabilities(self, theta: Vector) -> NDArray[np.float64]:
        z = self.phi @ theta.reshape(self.num_classes, -1).T
        z -= z.max(1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(1, keepdims=True)
        return z

    def at(self, theta: Vector) -> tuple[float, Vector]:
        z = self.phi @ theta.reshape(self.num_classes, -1).T
        z -= z.max(1, keepdims=True)
        total = np.exp(z).sum(1)
        loss = float((np.log(total) - z[self.rows, self.labels]).mean())
        residual = np.exp(z) / total[:, None]
        residual[self.rows, self.labels] -= 1
        gradient = (residual.T @ self.phi / len(self.phi)).reshape(-1) + self.decay * theta
        return loss + 0.5 * self.decay * float(theta @ theta), gradient

    def hessian_times(self, theta: Vector) -> _Apply:
        q = self.probabilities(theta)

        def apply(vector: Vector) -> Vector:
            u = self.phi @ vector.reshape(self.num_classes, -1).T
            r = q * (u - (q * u).sum(1, keepdims=True))
            out: Vector = (r.T @ self.phi / len(self.phi)).reshape(-1) + self.decay * vector.reshape(-1)
            return out

        return apply


def _line_search(
    objective: _Objective, theta: Vector, value: float, slope: float, step: Vector
) -> tuple[Vector, float, Vector] | None:
    """Where a step, halved as often as it takes, makes the objective smaller, as far as rounding lets one see."""
    for halvings in range(40):
        t = 0.5**halvings
        trial = theta + t * step
        found, gradient = objective.at(trial)
        if found <= value + 1e-4 * t * slope + _ROUNDING * abs(value):
            return trial, found, gradient
    return None
