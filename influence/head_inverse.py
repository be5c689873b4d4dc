"""The inverse of a head's Hessian: Cholesky where the matrix is regular to the cutoff, its eigenvectors where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import in_units, product
from .damped import STEPS, largest_eigenvalue
from .head_hessian import SoftmaxHessian
from .solve import Eigen, Inversion, eigendecompose
from .spectrum import Spectrum
from .tiles import Tiles

SPECTRUM_LIMIT = 2_500  # up to this size all eigenvalues are computed, for the report
SAFETY = 10.0  # how far above the cutoff an estimate of the smallest eigenvalue must lie to be believed
SINGLE_CONDITION = 1e5  # above, a float32 factor is too poor a start for refinement
SINGLE_ERROR = 4e-5  # of the scores, as estimated from a few queries: above, all solutions are refined in float64
FACTORS = {"0.1x": 0.1, "10x": 10.0}
SAMPLE = 16  # queries whose error is estimated before all of a block are refined
WIDER = 8  # times as many show how large the scores are


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """H + damping as a Cholesky factor; every eigenvalue is inverted."""

    hessian: SoftmaxHessian
    factor: Tiles
    rule: Inversion
    facts: Spectrum
    eigen: Eigen | None = None
    """Without vectors; None for a large matrix."""
    undamped: Tiles | None = None
    """The matrix itself, for other dampings; None for a large one."""

    @property
    def dtype(self) -> torch.dtype:
        """What scores need to be added up in."""
        return self.factor.dtype

    def solve(self, G: Float[Tensor, "c k b"], r: Float[Tensor, "n c"]) -> Float[Tensor, "c k b"]:
        """The inverse times some vectors.

        Args:
            G: The vectors, float64; what is left in them is of no use.
            r: Residuals of the train examples: the error that counts is that of the scores.

        Returns:
            The solutions; from a float32 factor refined with float64 residuals as often as a sample of them asks for.
        """
        if self.factor.dtype == torch.float64:
            X = G.contiguous()
            self.factor.solve_(X.flatten(0, 1))
            return X
        X = _once(self.factor, G)
        rate, left = self._error(G, X, r)
        while left > SINGLE_ERROR and rate < 0.5:
            X += _once(self.factor, self._residual(G, X))
            left *= rate
        return X

    def columns(self, classes: slice) -> Float[Tensor, "a k b k"]:
        """Part of the inverse itself, from one group of classes on.

        Args:
            classes: One of the Hessian's groups.

        Returns:
            Its rows from the first of these classes on, in their columns.
        """
        k = self.hessian.psi.shape[1]
        X = self.factor.inverse_columns(self.hessian.groups.index(classes))
        return X.view(self.hessian.c - classes.start, k, -1, k)

    def spectrum(self) -> Spectrum:
        """What is known of the eigenvalues.

        Returns:
            The facts.
        """
        return self.facts

    def neighbours(self) -> Mapping[str, Factored | Spectral]:
        """The same at a tenth and at ten times the damping or cutoff, where that costs little.

        Returns:
            This very inverse where neither cutoff cuts anything; a new one of a small matrix; nothing for a large matrix that
            would have to be factored again.
        """
        out: dict[str, Factored | Spectral] = {}
        for name, factor in FACTORS.items():
            rule = self.rule.scaled(factor, self.facts.cutoff)
            if rule.damping == 0 and self.facts.lambda_min > factor * self.facts.cutoff:
                out[name] = self
            elif self.hessian.size <= SPECTRUM_LIMIT:
                out[name] = _invert_small(self.hessian, rule, torch.finfo(torch.float64).eps, self)
        return out

    def _error(self, G: Tensor, X: Tensor, r: Tensor) -> tuple[float, float]:
        """Of a sample of solutions as they stand: largest relative error, and that of their scores with the train set."""
        few = slice(None, None, -(-X.shape[2] // SAMPLE))
        some = X[:, :, few].contiguous()
        change = _once(self.factor, self._residual(G[:, :, few], some))
        rate = _worst_ratio(change.flatten(0, 1).norm(dim=0), some.flatten(0, 1).norm(dim=0))
        more = X[:, :, :: -(-X.shape[2] // (SAMPLE * WIDER))]  # else the least of many maxima would be low
        unit = X.abs().max().clamp(min=1e-300)
        wrong, largest = (self.hessian.scores((v / unit).to(self.dtype), r).abs().amax(0) for v in (change, more))
        return rate, _worst_ratio(wrong, largest)

    def _residual(self, G: Tensor, X: Tensor) -> Tensor:
        rest = G - self.hessian.apply(X)
        if self.rule.damping:  # times I - 1 1^T / C
            rest -= self.rule.damping * (X - X.sum(0) / self.hessian.q.shape[1])
        return rest


@dataclass(frozen=True, slots=True, eq=False)
class Spectral:
    """The pseudo-inverse from the eigenvectors, in orthonormal contrasts."""

    hessian: SoftmaxHessian
    eigen: Eigen
    rule: Inversion

    @property
    def dtype(self) -> torch.dtype:
        """What scores need to be added up in."""
        return self.eigen.V.dtype

    def solve(self, G: Float[Tensor, "c k b"], r: Float[Tensor, "n c"]) -> Float[Tensor, "c k b"]:
        """The pseudo-inverse times some vectors.

        Args:
            G: The vectors, float64.
            r: Residuals of the train examples; not needed here.

        Returns:
            The products.
        """
        back = torch.linalg.inv(self.hessian.to_contrasts)
        V = self.eigen.V
        inside = product(V.T, _mix(G, back.T).flatten(0, 1))
        inside *= self.eigen.inverse(self.rule)[:, None]
        return _mix(product(V, inside).view_as(G), back)

    def columns(self, classes: slice) -> Float[Tensor, "a k b k"]:
        """Part of the pseudo-inverse itself, from one group of classes on.

        Args:
            classes: One of the Hessian's groups.

        Returns:
            Its rows from the first of these classes on, in their columns.
        """
        c, k = self.hessian.c, self.hessian.psi.shape[1]
        unit = torch.eye(c * k, dtype=torch.float64, device=self.hessian.psi.device)
        X = self.solve(unit[:, classes.start * k : classes.stop * k].reshape(c, k, -1), self.hessian.q)
        return X[classes.start :].reshape(c - classes.start, k, -1, k)

    def spectrum(self) -> Spectrum:
        """Facts of all eigenvalues.

        Returns:
            The facts.
        """
        return self.eigen.spectrum(self.rule)

    def neighbours(self) -> Mapping[str, Spectral]:
        """The same decomposition at a tenth and at ten times the damping or cutoff.

        Returns:
            Two inverses.
        """
        cutoff = self.eigen.cutoff(self.rule)
        return {name: replace(self, rule=self.rule.scaled(factor, cutoff)) for name, factor in FACTORS.items()}


Inverse = Factored | Spectral


def invert(
    hessian: SoftmaxHessian,
    rule: Inversion,
    eps: float,
    dtype: torch.dtype = torch.float64,
    like: Inverse | None = None,
) -> Inverse:
    """Factor the Hessian once.

    Args:
        hessian: What to invert.
        rule: Damping and cutoff.
        eps: Rounding unit of what it is accumulated from.
        dtype: float32 allows a float32 factor for a large matrix of moderate condition, whose solutions are then refined.
        like: The inverse of the same Hessian by another rule, whose eigenvalues are taken over.

    Returns:
        A Cholesky factor where no eigenvalue is to be cut, the spectral pseudo-inverse otherwise.
    """
    if isinstance(like, Spectral) and like.eigen.spectrum(rule).rank < hessian.size:
        return replace(like, rule=rule)
    if hessian.size <= SPECTRUM_LIMIT:
        return _invert_small(hessian, rule, eps, like)
    for kind in dict.fromkeys((dtype, torch.float64)):
        found = _invert_large(hessian, rule, eps, kind)
        if found is not None:
            return found
    return Spectral(hessian, eigendecompose(hessian.dense_in_contrasts(hessian.assemble()), eps), rule)


def extreme(hessian: SoftmaxHessian, steps: int = STEPS) -> float:
    """The largest eigenvalue; of a large matrix by a few steps of Lanczos.

    Args:
        hessian: Any size.
        steps: Applications to a block of vectors, at most.

    Returns:
        The eigenvalue, or a lower bound that is close where it stands apart.
    """
    if hessian.size <= SPECTRUM_LIMIT:
        dense = hessian.dense_in_contrasts(hessian.assemble())
        return float(eigendecompose(dense, torch.finfo(torch.float64).eps, vectors=False).lam[0])
    back, shape = torch.linalg.inv(hessian.to_contrasts), (hessian.c, hessian.psi.shape[1], -1)

    def forward(X: Tensor) -> Tensor:
        return _mix(hessian.apply(_mix(X.view(shape), back)), back.T).flatten(0, 1)

    return largest_eigenvalue(forward, hessian.size, hessian.psi.device, steps=steps)


def _invert_small(hessian: SoftmaxHessian, rule: Inversion, eps: float, like: Inverse | None = None) -> Inverse:
    known = like.undamped if isinstance(like, Factored) else None
    undamped = hessian.assemble() if known is None else known
    eigen = eigendecompose(hessian.dense_in_contrasts(undamped), eps, vectors=False) if like is None else like.eigen
    assert eigen is not None  # of a small matrix they are always there
    facts = eigen.spectrum(rule)
    tiles = undamped.copy()
    hessian.damp_(tiles, rule.damping)
    if facts.rank == facts.size and facts.smallest_kept > 0 and tiles.factor_():
        return Factored(hessian, tiles, rule, facts, eigen, undamped)
    if len(eigen.V) != hessian.size:
        eigen = eigendecompose(hessian.dense_in_contrasts(undamped), eps)
    return Spectral(hessian, eigen, rule)


def _invert_large(hessian: SoftmaxHessian, rule: Inversion, eps: float, dtype: torch.dtype) -> Factored | None:
    """A Cholesky factor in this type, or None when it will not do."""
    tiles = hessian.assemble(rule.damping, dtype)
    if not tiles.factor_():
        return None
    Q = hessian.to_contrasts

    def backward(X: Tensor) -> Tensor:
        return _mix(_once(tiles, _mix(X, Q.T)), Q)

    size, device, shape = hessian.size, hessian.psi.device, (hessian.c, hessian.psi.shape[1], -1)
    lambda_max = extreme(hessian, steps=3)
    lowest = 1 / largest_eigenvalue(lambda X: backward(X.view(shape)).flatten(0, 1), size, device, steps=2)
    lambda_min = max(0.0, lowest - rule.damping)
    cutoff = rule.cutoff(lambda_max, hessian.size, eps)
    condition = (lambda_max + rule.damping) / lowest
    nothing_cut = rule.damping > 0 and rule.rcond is None and rule.absolute is None
    if not nothing_cut and not lambda_min > SAFETY * cutoff:
        return None
    if dtype == torch.float32 and not condition < SINGLE_CONDITION:
        return None
    facts = Spectrum(
        size=hessian.size,
        rank=hessian.size,
        cutoff=cutoff,
        damping=rule.damping,
        lambda_max=lambda_max,
        lambda_min=lambda_min,
        smallest_kept=lowest,
        condition=condition,
        trace_kept=1.0,
        negative=0,
        negative_trace=0.0,
    )
    return Factored(hessian, tiles, rule, facts)


def _once(factor: Tiles, G: Float[Tensor, "c k b"]) -> Float[Tensor, "c k b"]:
    """Solutions without refinement, float64 numbers of the precision of the factor."""
    single, size = in_units(G, factor.dtype)
    factor.solve_(single.flatten(0, 1))
    return single.double() * size


def _worst_ratio(part: Float[Tensor, " b"], whole: Float[Tensor, " b"]) -> float:
    return float((part / whole.clamp(min=1e-300)).max())


def _mix(X: Float[Tensor, "c k b"], M: Float[Tensor, "d c"]) -> Float[Tensor, "d k b"]:
    mixed: Tensor = torch.einsum("dc,ckb->dkb", M, X)
    return mixed
