"""Every curvature with its ground truth: a new one is added here and inherits the whole contract suite."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import kronecker_reference
import numpy as np
import reference
import torch
from cases import BY_NAME, CASES, Case, Problem
from upweight import EKFAC, KFAC, ConjugateGradient, GaussNewton, GradientDot, Hessian, LinearHead
from upweight.influence.lanczos import Lanczos
from upweight.influence.nystroem import Nystroem
from upweight.influence.projected import Projected

Truth = Callable[[Case, "Parts"], np.ndarray]


@dataclass(frozen=True)
class Parts:
    """What the references of one problem share; all float64."""

    problem: Problem
    G_query: np.ndarray
    """[m, p]"""
    G_train: np.ndarray
    """[n, p]"""
    asked: tuple[torch.Tensor, torch.Tensor]
    """Inputs and labels of the queries, or of the train set where that is scored on itself."""

    @functools.cached_property
    def hessian(self) -> np.ndarray:
        return reference.mean_hessian(self.problem)

    @functools.cached_property
    def ggn(self) -> np.ndarray:
        return reference.mean_ggn(self.problem)

    @functools.cached_property
    def kinds(self) -> dict[str, np.ndarray]:
        """Contributions of each example to the curvature of each kind of rows, [n, p, p]."""
        return {rows: reference.curvature_parts(self.problem, rows) for rows in ("logits", "margin", "trak", "label")}

    @functools.cached_property
    def kronecker(self) -> dict[str, np.ndarray]:
        """What K-FAC and EK-FAC take for the curvature [p, p]."""
        return {kind: kronecker_reference.kronecker_curvature(self.problem, kind) for kind in ("kfac", "ekfac")}

    def without(self, rows: str, kind: bool | str, damping: float) -> np.ndarray:
        """Scores with the leave-one-out correction, or n times the change of the loss at moved logits."""
        if kind == "loss":
            return reference.leave_one_out_losses(self.problem, *self.asked, self.kinds[rows], self.G_train, damping)
        return reference.leave_one_out_scores(self.G_query, self.kinds[rows], self.G_train, damping)

    def through(self, H_inverse: np.ndarray) -> np.ndarray:
        return reference.score_matrix(self.G_query, H_inverse, self.G_train)


@functools.cache
def parts(case: Case, dtype: torch.dtype = torch.float64, on_itself: bool = False) -> Parts:
    problem = case.build(dtype=dtype)
    G_train = reference.gradients(problem, *problem.train)
    asked = problem.train if on_itself else problem.queries
    return Parts(problem, G_train if on_itself else reference.gradients(problem, *asked), G_train, asked)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to score, and the same by loops."""

    name: str
    build: Callable[[Case], Any]
    truth: Truth
    head_only: bool = False
    main: bool = True
    """Variants that differ from a main method in one number are held to the loops, and spared the laws."""
    skip: frozenset[str] = frozenset()
    """Names of cases it is not for."""
    double: bool = False
    """It asks for more digits than float32 has."""

    def applies(self, case: Case) -> bool:
        return (case.head or not self.head_only) and case.name not in self.skip


def _hessian(case: Case, ask: Parts) -> np.ndarray:
    """For a head the Gauss-Newton form is the Hessian, and by loops it stays exact where probabilities saturate."""
    return ask.ggn if case.head else ask.hessian


def _newton(name: str, damping: float | None = None, main: bool = False, **options: Any) -> Method:
    """GaussNewton with the case's damping, or one of its own, held to its rows' curvature."""
    rows = options.get("rows", "logits")

    def truth(case: Case, ask: Parts) -> np.ndarray:
        lam = case.damping if damping is None else damping
        if options.get("leave_one_out"):
            return ask.without(rows, options["leave_one_out"], lam)
        return ask.through(reference.inverse(ask.kinds[rows].sum(axis=0), damping=lam))

    return Method(
        name=f"GaussNewton-{name}",
        main=main,
        build=lambda case: GaussNewton(damping=case.damping if damping is None else damping, **options),
        truth=truth,
        # Undamped beyond a head, spectra fall to 1e-10 of the largest eigenvalue: no 8 digits are left of such an inverse.
        # Of a saturated column the dual form keeps its digits only when damped (an eigendecomposition is exact in norm alone).
        skip=frozenset()
        if damping is None
        else frozenset(case.name for case in CASES if not case.head or case.saturated),
    )


def _automatic(case: Case, ask: Parts) -> np.ndarray:
    """The default damping: a 1,000th of the largest eigenvalue, as no weight decay is told."""
    return ask.through(reference.inverse(ask.ggn, damping=np.linalg.eigvalsh(ask.ggn)[-1] / 1000))


def _kronecker(kind: str, build: Callable[..., Any], main: bool) -> Method:
    """An approximation of the curvature is held to the same approximation by loops; how far it is off has tests of its own."""
    return Method(
        name=build.__name__,
        main=main,
        build=lambda case: build(damping=case.damping),
        truth=lambda case, ask: ask.through(reference.inverse(ask.kronecker[kind], damping=case.damping)),
    )


def _top(H: np.ndarray, rank: int, damping: float) -> np.ndarray:
    """The inverse of the eigenpairs of largest absolute value, and of the damping alone outside of them."""
    values, vectors = np.linalg.eigh(H)
    best = np.argsort(-abs(values))[:rank]
    inside = (vectors[:, best] / (values[best] + damping)) @ vectors[:, best].T
    return inside + (np.eye(len(H)) - vectors[:, best] @ vectors[:, best].T) / damping


def _on_the_way(problem: Problem) -> Problem:
    """The problem where the analysed weights are half of what they are, rounded to single precision."""
    problem = replace(problem, model=copy.deepcopy(problem.model))
    with torch.no_grad():
        for name, value in problem.model.named_parameters():
            if name in problem.names:
                value.copy_((0.5 * value).float())
    return problem


def _checkpoint(case: Case) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():  # new layers draw from torch's own generator
        problem = _on_the_way(case.build())
    return {name: value for name, value in problem.model.state_dict().items() if name in problem.names}


def _half_way(case: Case, ask: Parts) -> np.ndarray:
    """Two checkpoints of rates 0.5 and 1.5 at the same half weights."""
    problem = _on_the_way(ask.problem)
    return 2.0 * reference.dots(reference.gradients(problem, *ask.asked), reference.gradients(problem, *problem.train))


def _conjugate(kind: str, **options: Any) -> Method:
    """Iterated to the limit, where it is exact; how fast it gets there has tests of its own."""
    return Method(
        name=f"ConjugateGradient-{kind}",
        main=False,
        double=True,
        build=lambda case: ConjugateGradient(damping=case.damping, rtol=1e-12, **options),
        truth=lambda case, ask: ask.through(
            reference.inverse(_hessian(case, ask) if kind == "hessian" else ask.ggn, damping=case.damping)
        ),
    )


@functools.cache
def _size(case: Case) -> int:
    """Parameters; a model's own first weights are drawn from the global generator, which is left as it was."""
    with torch.random.fork_rng():
        return case.build().p


METHODS = (
    Method(
        name="LinearHead",
        head_only=True,
        build=lambda case: LinearHead(),
        truth=lambda case, ask: ask.through(reference.inverse(ask.ggn)),
    ),
    Method(
        name="LinearHead-damped",
        head_only=True,
        main=False,
        build=lambda case: LinearHead(damping=case.damping),
        truth=lambda case, ask: ask.through(reference.inverse(ask.ggn, damping=case.damping)),
    ),
    Method(
        name="LinearHead-auto",
        head_only=True,
        main=False,
        build=lambda case: LinearHead(damping="auto"),
        truth=lambda case, ask: _automatic(case, ask),
    ),
    Method(
        name="LinearHead-leave-one-out",
        head_only=True,
        main=False,
        build=lambda case: LinearHead(damping=case.damping, leave_one_out=True),
        truth=lambda case, ask: ask.without("logits", True, case.damping),
    ),
    Method(
        name="LinearHead-leave-one-out-loss",
        head_only=True,
        main=False,
        build=lambda case: LinearHead(damping=case.damping, leave_one_out="loss"),
        truth=lambda case, ask: ask.without("logits", "loss", case.damping),
    ),
    Method(
        name="Hessian",
        build=lambda case: Hessian(),
        truth=lambda case, ask: ask.through(reference.inverse(_hessian(case, ask))),
    ),
    Method(
        name="Hessian-damped",
        main=False,
        build=lambda case: Hessian(damping=case.damping),
        truth=lambda case, ask: ask.through(reference.inverse(_hessian(case, ask), damping=case.damping)),
    ),
    Method(
        name="Hessian-drop",
        main=False,
        build=lambda case: Hessian(negative="drop"),
        truth=lambda case, ask: ask.through(reference.inverse(_hessian(case, ask), negative="drop")),
    ),
    Method(
        name="GradientDot",
        build=lambda case: GradientDot(),
        truth=lambda case, ask: reference.dots(ask.G_query, ask.G_train),
    ),
    Method(
        name="GradientDot-cosine",
        build=lambda case: GradientDot(cosine=True),
        truth=lambda case, ask: reference.cosines(ask.G_query, ask.G_train),
    ),
    Method(
        name="GradientDot-checkpoints",
        build=lambda case: GradientDot(checkpoints=[_checkpoint(case)] * 2, rates=[0.5, 1.5]),
        truth=_half_way,
    ),
    Method(name="GaussNewton", build=lambda case: GaussNewton(), truth=_automatic, main=False),
    _newton("primal", form="primal", main=True),
    _newton("dual", form="dual", main=True),
    _newton("primal-undamped", damping=0.0, form="primal"),
    _newton("dual-undamped", damping=0.0, form="dual"),
    _newton("margin", rows="margin", form="dual"),
    _newton("trak", rows="trak", form="dual"),
    _newton("label", rows="label", form="dual"),
    _newton("leave-one-out-primal", form="primal", leave_one_out=True),
    _newton("leave-one-out-dual", form="dual", leave_one_out=True),
    _newton("leave-one-out-loss-primal", form="primal", leave_one_out="loss"),
    _newton("leave-one-out-loss-dual", form="dual", leave_one_out="loss"),
    _kronecker("kfac", KFAC, main=False),
    _kronecker("ekfac", EKFAC, main=True),
    _conjugate("ggn"),
    _conjugate("hessian", curvature="hessian", precondition="none"),
    # at full rank what approximates is exact
    Method(
        name="Nystroem",
        build=lambda case: Nystroem(rank=10**6, damping=case.damping),
        truth=lambda case, ask: ask.through(reference.inverse(ask.ggn, damping=case.damping)),
    ),
    Method(
        name="Lanczos-hessian",
        main=False,
        build=lambda case: Lanczos(rank=10**6, curvature="hessian", damping=case.damping),
        truth=lambda case, ask: ask.through(reference.inverse(_hessian(case, ask), damping=case.damping)),
    ),
    Method(
        name="Lanczos-rank-4",
        main=False,
        build=lambda case: Lanczos(rank=4, subspace=10**6, rtol=1e-14, damping=case.damping),
        truth=lambda case, ask: ask.through(_top(ask.ggn, 4, case.damping)),
    ),
    Method(
        name="Projected",
        main=False,
        build=lambda case: Projected(width=_size(case), draw="orthogonal", damping=case.damping),
        truth=lambda case, ask: ask.through(reference.inverse(ask.kinds["trak"].sum(axis=0), damping=case.damping)),
    ),
)

PAIRS = tuple((method, case) for method in METHODS for case in CASES if method.applies(case))
MAIN_PAIRS = tuple((method, case) for method, case in PAIRS if method.main)
ONE_EACH = tuple((m, BY_NAME["fitted" if m.head_only or "mlp" in m.skip else "mlp"]) for m in METHODS)
"""Every method once, on a problem that shows what it is for."""


def pair_name(value: Method | Case) -> str:
    return value.name


@functools.cache
def truth(method: Method, case: Case, dtype: torch.dtype = torch.float64, on_itself: bool = False) -> np.ndarray:
    """The scores [m, n] by loops, of the problem as it is after rounding to `dtype`."""
    return method.truth(case, parts(case, dtype, on_itself))


def assert_scores(got: Any, want: np.ndarray, rtol: float) -> None:
    """Relative error train example by train example: a score that is small because its example is fitted counts in full."""
    got = np.asarray(got)
    assert got.shape == want.shape
    largest = abs(want).max(axis=0, keepdims=True)
    error = np.divide(abs(got - want), largest, out=abs(got - want).astype(float), where=largest > 0)
    worst = np.unravel_index(np.argmax(error), error.shape)
    assert error.max() <= rtol, (
        f"query {worst[0]}, train example {worst[1]}: {got[worst]:.6g}, should be {want[worst]:.6g}; relative error "
        f"{error.max():.1e} > {rtol:.0e}"
    )
