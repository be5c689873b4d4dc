"""Conjugate gradients beyond the contract: how they converge, and that nothing unsolved is ever handed out."""

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME
from methods import assert_scores, parts
from upweight import ConjugateGradient, Hessian, SolveError, UsageError, attribute
from upweight.influence.krylov import conjugate_gradients


def score(problem, curvature, **options):
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


@pytest.mark.parametrize("precondition", ["nystroem", "ekfac", "diagonal", "none"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_error_falls_with_rtol_and_keeps_its_bound(name, precondition):
    ask = parts(BY_NAME[name])
    damping = float(np.linalg.eigvalsh(ask.ggn)[-1]) / 1000
    want = ask.through(reference.inverse(ask.ggn, damping=damping))
    lengths = np.linalg.norm(ask.G_query, axis=1)[:, None] * np.linalg.norm(ask.G_train, axis=1)
    worst = []
    for rtol in (1e-1, 1e-3, 1e-6, 1e-9):
        options = {"damping": damping, "rtol": rtol, "precondition": precondition, "rank": 5}
        error = abs(score(ask.problem, ConjugateGradient(**options)).matrix - want)
        assert (error <= rtol * lengths / damping + 1e-12).all()  # what the docstring promises
        worst.append(error.max())
    assert worst[-1] < 1e-7 * abs(want).max() and worst[-1] < worst[1] < worst[0]


def test_auto_is_a_1000th_of_the_largest_eigenvalue():
    ask = parts(BY_NAME["conv"])
    spectrum = score(ask.problem, ConjugateGradient()).spectrum
    largest = np.linalg.eigvalsh(ask.ggn)[-1]
    assert spectrum.lambda_max == pytest.approx(largest, rel=1e-3)
    assert spectrum.damping == pytest.approx(largest / 1000, rel=1e-3)


def test_the_hessian_of_any_loss():
    problem = BY_NAME["mlp"].build()

    def loss(z, y):
        return torch.nn.functional.cross_entropy(z, y, reduction="none") + 0.1 * z.square().sum(1)

    curvature = ConjugateGradient(damping=2.0, curvature="hessian", precondition="none", rtol=1e-11)
    want = score(problem, Hessian(damping=2.0), loss=loss).matrix
    assert_scores(score(problem, curvature, loss=loss).matrix, want, 1e-8)
    with pytest.raises(UsageError, match="take precondition='none'"):
        score(problem, ConjugateGradient(damping=2.0, curvature="hessian"), loss=loss)
    with pytest.raises(UsageError, match="cross-entropy"):
        score(problem, ConjugateGradient(precondition="none"), loss=loss)


def test_a_preconditioner_of_the_ggn_serves_the_hessian():
    ask = parts(BY_NAME["mlp"])
    want = ask.through(reference.inverse(ask.hessian, damping=1.0))
    got = score(ask.problem, ConjugateGradient(damping=1.0, curvature="hessian", rtol=1e-12)).matrix
    assert_scores(got, want, 1e-8)


def test_what_it_took_is_said():
    problem = BY_NAME["mlp"].build()
    (said,) = [s for s in score(problem, ConjugateGradient(rtol=1e-4)).meta["warnings"] if "onjugate" in s]
    assert said.startswith("Conjugate gradients solved 6 systems in at most ")
    assert float(said.rsplit(" ", 1)[1].rstrip(".")) <= 1e-4


def test_too_few_steps_are_an_error_with_the_residual():
    problem = BY_NAME["mlp"].build()
    curvature = ConjugateGradient(damping=1e-3, max_steps=2, precondition="none")
    with pytest.raises(
        SolveError,
        match=r"took 2 steps and left a relative residual of .*e.*, where 1e-06 was asked for; raise max_steps",
    ):
        score(problem, curvature)


def test_more_digits_than_the_type_has_are_an_error():
    problem = BY_NAME["mlp"].build(dtype=torch.float32)
    with pytest.raises(SolveError, match="rounding keeps it above the 1e-12 that was asked for"):
        score(problem, ConjugateGradient(rtol=1e-12, precondition="none"))


def test_negative_curvature_is_an_error_with_its_value():
    ask = parts(BY_NAME["mlp"])
    assert np.linalg.eigvalsh(ask.hessian)[0] < -0.01
    with pytest.raises(SolveError, match=r"not positive: along one direction it is -\d.* take curvature='ggn'"):
        score(ask.problem, ConjugateGradient(damping=1e-4, curvature="hessian", precondition="none"))


def test_float32_reaches_the_default():
    ask = parts(BY_NAME["conv"], torch.float32)
    damping = float(np.linalg.eigvalsh(ask.ggn)[-1]) / 1000
    got = score(BY_NAME["conv"].build(dtype=torch.float32), ConjugateGradient(damping=damping)).matrix
    assert_scores(got, ask.through(reference.inverse(ask.ggn, damping=damping)), 1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"damping": 0.0}, "finite damping > 0"),
        ({"rtol": 0.0}, "rtol must lie between 0 and 1"),
        ({"rtol": float("nan")}, "rtol must lie between 0 and 1"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"rank": 0}, "rank must be at least 1"),
        pytest.param({"curvature": "fisher"}, "curvature must be 'ggn' or 'hessian'", marks=pytest.mark.untyped),
        pytest.param(
            {"precondition": "jacobi"},
            "precondition must be one of nystroem, ekfac, diagonal, none",
            marks=pytest.mark.untyped,
        ),
        ({"curvature": "hessian"}, "give the Hessian a number"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        ConjugateGradient(**options)


class TestSystems:
    """The iteration itself, on a matrix."""

    def solve(self, A, B, M=None, **options):
        calls = []

        def operator(X):
            calls.append(len(X))
            return X @ A

        inverse = (lambda X: X) if M is None else (lambda X: X @ M)
        options = {"rtol": 1e-10, "max_steps": 100, **options}
        return conjugate_gradients(operator, B, inverse, **options), calls

    def test_rows_that_are_solved_take_no_further_part(self):
        A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64))
        B = torch.zeros(3, 5, dtype=torch.float64)
        B[0, 0] = 1.0  # an eigenvector: one step
        B[1] = torch.arange(1.0, 6.0)  # five of them: five steps; the third row is zero: none
        found, calls = self.solve(A, B)
        assert calls[:2] == [2, 1] and found.steps == 5
        assert torch.allclose(found.X @ A, B, atol=1e-9)
        assert not found.X[2].any()

    def test_a_row_does_not_depend_on_its_company(self):
        g = torch.Generator().manual_seed(0)
        A = torch.randn(9, 9, generator=g, dtype=torch.float64)
        A, B = A @ A.T + torch.eye(9), torch.randn(4, 9, generator=g, dtype=torch.float64)
        together, _ = self.solve(A, B)
        for i in range(4):
            alone, _ = self.solve(A, B[i : i + 1])
            assert torch.allclose(alone.X[0], together.X[i], rtol=1e-8)

    def test_the_exact_inverse_as_preconditioner_takes_one_step(self):
        A = torch.diag(torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64))
        found, _ = self.solve(A, torch.ones(2, 3, dtype=torch.float64), torch.linalg.inv(A))
        assert found.steps == 1

    def test_nothing_asked_is_nothing_done(self):
        found, calls = self.solve(torch.eye(3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
        assert not calls and found.steps == 0 and not found.residual

    def test_nan_is_not_a_solution(self):
        A = torch.full((2, 2), float("nan"), dtype=torch.float64)
        with pytest.raises(SolveError, match="met NaN"):
            self.solve(A, torch.ones(1, 2, dtype=torch.float64))
