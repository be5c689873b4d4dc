"""The inverse of a head's Hessian: Cholesky where the matrix is regular to the cutoff, its eigenvectors where it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .blas import product
from .head_hessian import SoftmaxHessian
from .solve import Eigen, Inversion, eigendecompose
from .spectrum import Spectrum
from .tiles import Tiles

SPECTRUM_LIMIT = 2_500  # up to this size all eigenvalues are computed, for the report
SAFETY = 10.0  # how far above the cutoff an estimate of the smallest eigenvalue must lie to be believed
SINGLE_CONDITION = 1e5  # above, a float32 factor is too poor a start for refinement
SINGLE_ERROR = 1e-6  # of a solution, relative: what refinement brings a float32 factor's solutions to
WIDTH, STEPS = (
    8,
    4,
)  # of the Lanczos iteration: 8 solves cost hardly more than one, which reads the factor twice as well
FACTORS = {"0.1x": 0.1, "10x": 10.0}
SAMPLE = 8  # solutions whose error is estimated before all of a block are refined


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """H + damping as a Cholesky factor; every eigenvalue is inverted."""

    hessian: SoftmaxHessian
    factor: Tiles
    rule: Inversion
    facts: Spectrum

    def solve(self, G: Float[Tensor, "c k b"]) -> Float[Tensor, "c k b"]:
        """The inverse times some vectors.

        Args:
            G: The vectors, float64, contiguous; what is left in them is of no use.

        Returns:
            The solutions; from a float32 factor refined with float64 residuals as often as a sample of them asks for.
        """
        if self.factor.dtype == torch.float64:
            self.factor.solve_(G.flatten(0, 1))
            return G
        X = _once(self.factor, G)
        few = X[:, :, :SAMPLE].contiguous()
        error = _worst_ratio(_once(self.factor, self._residual(G[:, :, :SAMPLE], few)), few)
        left = error
        while left > SINGLE_ERROR and error < 0.5:
            X += _once(self.factor, self._residual(G, X))
            left *= error
        return X

    def spectrum(self) -> Spectrum:
        """What is known of the eigenvalues.

        Returns:
            The facts.
        """
        return self.facts

    def neighbours(self) -> Mapping[str, Factored]:
        """The same at a tenth and at ten times the damping or cutoff, where that costs little.

        Returns:
            Nothing for a large damped matrix, which would have to be factored again; undamped, this very inverse where no
            eigenvalue lies near the cutoff.
        """
        if self.rule.damping == 0:
            return {
                name: self for name, factor in FACTORS.items() if self.facts.lambda_min > factor * self.facts.cutoff
            }
        if self.hessian.size > SPECTRUM_LIMIT:
            return {}
        cutoff = self.facts.cutoff
        out = {}
        for name, factor in FACTORS.items():
            rule = self.rule.scaled(factor, cutoff)
            tiles = self.hessian.assemble(rule.damping)
            if tiles.factor_():
                out[name] = replace(self, factor=tiles, rule=rule)
        return out

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

    def solve(self, G: Float[Tensor, "c k b"]) -> Float[Tensor, "c k b"]:
        """The pseudo-inverse times some vectors.

        Args:
            G: The vectors, float64.

        Returns:
            The products.
        """
        back = torch.linalg.inv(self.hessian.to_contrasts)
        V = self.eigen.V
        inside = product(V.T, _mix(G, back.T).flatten(0, 1))
        inside *= self.eigen.inverse(self.rule)[:, None]
        return _mix(product(V, inside).view_as(G), back)

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


def invert(hessian: SoftmaxHessian, rule: Inversion, eps: float, dtype: torch.dtype = torch.float64) -> Inverse:
    """Factor the Hessian once.

    Args:
        hessian: What to invert.
        rule: Damping and cutoff.
        eps: Rounding unit of what it is accumulated from.
        dtype: float32 allows a float32 factor for a large matrix of moderate condition, whose solutions are then refined.

    Returns:
        A Cholesky factor where no eigenvalue is to be cut, the spectral pseudo-inverse otherwise.
    """
    if hessian.size <= SPECTRUM_LIMIT:
        return _invert_small(hessian, rule, eps)
    for kind in dict.fromkeys((dtype, torch.float64)):
        found = _invert_large(hessian, rule, eps, kind)
        if found is not None:
            return found
    return Spectral(hessian, eigendecompose(hessian.dense_in_contrasts(), eps), rule)


def _invert_small(hessian: SoftmaxHessian, rule: Inversion, eps: float) -> Inverse:
    H = hessian.dense_in_contrasts()
    eigen = eigendecompose(H, eps, vectors=False)
    facts = eigen.spectrum(rule)
    tiles = hessian.assemble(rule.damping)
    if facts.rank == facts.size and facts.smallest_kept > 0 and tiles.factor_():
        return Factored(hessian, tiles, rule, facts)
    return Spectral(hessian, eigendecompose(H, eps), rule)


def _invert_large(hessian: SoftmaxHessian, rule: Inversion, eps: float, dtype: torch.dtype) -> Factored | None:
    """A Cholesky factor in this type, or None when it will not do."""
    tiles = hessian.assemble(rule.damping, dtype)
    if not tiles.factor_():
        return None
    Q = hessian.to_contrasts
    back = torch.linalg.inv(Q)

    def forward(X: Tensor) -> Tensor:
        return _mix(hessian.apply(_mix(X, back)), back.T)

    def backward(X: Tensor) -> Tensor:
        return _mix(_once(tiles, _mix(X, Q.T)), Q)

    lambda_max = largest_eigenvalue(forward, hessian)
    lowest = 1 / largest_eigenvalue(backward, hessian)
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


def largest_eigenvalue(operator: Callable[[Tensor], Tensor], hessian: SoftmaxHessian) -> float:
    """Largest eigenvalue of a positive semi-definite operator by a few steps of block Lanczos.

    Args:
        operator: Vectors [b, c, k] to vectors, symmetric.
        hessian: For the shape.

    Returns:
        A lower bound that is nearly always within some percent, and far closer where the eigenvalue stands apart.
    """
    shape = (hessian.c, hessian.psi.shape[1], -1)
    width = min(WIDTH, hessian.size)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(hessian.size, width, generator=generator, dtype=torch.float64).to(hessian.psi.device)
    basis = torch.linalg.qr(start).Q
    images = operator(basis.view(shape)).flatten(0, 1)
    for _ in range(min(STEPS, hessian.size // width) - 1):
        rest = images[:, -width:] - basis @ (basis.T @ images[:, -width:])
        rest -= basis @ (basis.T @ rest)  # twice is enough
        new = torch.linalg.qr(rest).Q
        basis = torch.cat([basis, new], dim=1)
        images = torch.cat([images, operator(new.contiguous().view(shape)).flatten(0, 1)], dim=1)
    T = basis.T @ images
    return float(torch.linalg.eigvalsh((T + T.T) / 2)[-1])


def _once(factor: Tiles, G: Float[Tensor, "c k b"]) -> Float[Tensor, "c k b"]:
    """Solutions without refinement, float64 numbers of the precision of the factor."""
    # in the type of the factor; in float32 the gradient of a well fitted example would underflow, were it not scaled
    size = G.abs().amax((0, 1))
    size = torch.where(size > 0, size, 1.0)
    single = (G / size).to(factor.dtype).contiguous()
    factor.solve_(single.flatten(0, 1))
    return single.double() * size


def _worst_ratio(part: Tensor, whole: Tensor) -> float:
    """Largest |part| / |whole| over the columns."""
    lengths = whole.flatten(0, 1).norm(dim=0)
    return float((part.flatten(0, 1).norm(dim=0) / lengths.clamp(min=1e-300)).max())


def _mix(X: Float[Tensor, "c k b"], M: Float[Tensor, "d c"]) -> Float[Tensor, "d k b"]:
    mixed: Tensor = torch.einsum("dc,ckb->dkb", M, X)
    return mixed
