"""The Gauss-Newton inverse beyond the contract: its default damping, its two forms, its warnings, its rows, real deletions."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, Problem
from methods import assert_scores, parts
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from torch import nn
from upweight import GaussNewton, Hessian, LinearHead, SolveError, UsageError, attribute


def score(problem, curvature, **options):
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


class TestDamping:
    @pytest.mark.parametrize("form", ["primal", "dual"])
    @pytest.mark.parametrize("name", ["mlp", "conv", "head"])
    def test_auto_is_a_1000th_of_the_largest_eigenvalue(self, name, form):
        ask = parts(BY_NAME[name])
        largest = np.linalg.eigvalsh(ask.ggn)[-1]
        spectrum = score(ask.problem, GaussNewton(form=form)).spectrum
        assert spectrum.damping == pytest.approx(largest / 1000, rel=1e-6)
        assert spectrum.lambda_max == pytest.approx(largest, rel=1e-6)

    def test_auto_is_three_weight_decays_when_that_is_more(self):
        ask = parts(BY_NAME["mlp"])
        scores = score(ask.problem, GaussNewton(), weight_decay=0.7)
        assert scores.spectrum.damping == pytest.approx(2.1)
        assert_scores(scores.matrix, ask.through(reference.inverse(ask.ggn, damping=2.1)), 1e-8)

    def test_auto_of_a_head_is_its_weight_decay_however_small(self):
        ask = parts(BY_NAME["head"])
        scores = score(ask.problem, GaussNewton(), weight_decay=1e-5)
        assert scores.spectrum.damping == pytest.approx(1e-5)

    def test_a_small_weight_decay_does_not_lower_it(self):
        ask = parts(BY_NAME["mlp"])
        assert_scores(
            score(ask.problem, GaussNewton(), weight_decay=1e-9).matrix, score(ask.problem, GaussNewton()).matrix, 1e-9
        )

    def test_it_is_the_default_beyond_the_head(self):
        problem = BY_NAME["mlp"].build()
        scores = attribute(problem.model, problem.train, problem.queries, parameters="all")
        assert scores.meta["curvature"]["name"] == "GaussNewton"
        assert_scores(scores.matrix, score(problem, GaussNewton()).matrix, 1e-9)


class TestForms:
    @pytest.mark.parametrize("name", ["mlp", "some-layers", "few-examples", "fewer-than-classes"])
    def test_primal_and_dual_report_the_same_spectrum(self, name):
        """A A^T and A^T A share every eigenvalue that is not zero; p is smaller than N in two of these, larger in two."""
        problem = BY_NAME[name].build()
        primal = score(problem, GaussNewton(damping=0.0, form="primal")).spectrum
        dual = score(problem, GaussNewton(damping=0.0, form="dual")).spectrum
        assert primal.size == problem.p and dual.size == problem.n * (problem.num_classes - 1)
        assert primal.rank == dual.rank
        assert_allclose(primal.eigenvalues[: primal.rank], dual.eigenvalues[: primal.rank], rtol=1e-8, atol=1e-14)
        assert_allclose(
            [primal.lambda_max, primal.smallest_kept], [dual.lambda_max, dual.smallest_kept], rtol=1e-8, atol=1e-14
        )

    def test_on_the_head_it_is_the_closed_form(self):
        problem = BY_NAME["fitted"].build()
        closed = score(problem, LinearHead(damping=1e-2)).matrix
        for form in ("primal", "dual", "auto"):
            assert_scores(score(problem, GaussNewton(damping=1e-2, form=form)).matrix, closed, 1e-9)

    def test_beyond_the_head_it_is_not_the_hessian(self):
        problem = BY_NAME["mlp"].build()
        newton, hessian = score(problem, GaussNewton(damping=1.0)).matrix, score(problem, Hessian(damping=1.0)).matrix
        assert abs(newton - hessian).max() > 1e-2 * abs(hessian).max()


class TestSizes:
    @pytest.mark.parametrize("n", [7, 8, 9])
    @pytest.mark.parametrize("form", ["primal", "dual", "auto"])
    def test_fewer_as_many_and_more_rows_than_parameters(self, form, n):
        """Two classes give one row an example: N = n beside p = 8."""
        g = torch.Generator().manual_seed(n)
        model = nn.Linear(3, 2).double()
        X, y = torch.randn(n + 4, 3, generator=g, dtype=torch.float64), torch.arange(n + 4) % 2
        problem = Problem(
            model=model,
            train=(X[:n], y[:n]),
            queries=(X[n:], y[n:]),
            parameters="all",
            names=("weight", "bias"),
            num_classes=2,
        )
        G_train, G_query = (reference.gradients(problem, *side) for side in (problem.train, problem.queries))
        want = G_query @ reference.inverse(reference.mean_ggn(problem), damping=0.05) @ G_train.T
        scores = score(problem, GaussNewton(form=form, damping=0.05))
        assert_scores(scores.matrix, want, 1e-10)
        assert scores.spectrum.size == {"primal": 8, "dual": n, "auto": min(8, n)}[form]

    @pytest.mark.parametrize("form", ["primal", "dual"])
    def test_parameters_that_the_loss_does_not_reach_change_nothing(self, form):
        """Their rows are zero, in a layer that does not matter and in one that never runs."""
        torch.manual_seed(0)

        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.unused, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
                self.idle = nn.Linear(4, 4)

            def forward(self, x):
                return self.out(torch.tanh(self.body(x))) + 0 * self.unused(x).sum(1, keepdim=True)

        model = Half().double()
        X, y = torch.randn(16, 4, dtype=torch.float64), torch.arange(16) % 3
        sides = (X[:11], y[:11]), (X[11:], y[11:])
        curvature = GaussNewton(form=form, damping=0.05)
        every = attribute(model, *sides, parameters="all", curvature=curvature).matrix
        used = attribute(model, *sides, parameters=["body", "out"], curvature=curvature).matrix
        assert_scores(every, used, 1e-10)


class TestInterpolation:
    """MATHS: with p >= N and no damping, a train set scores on itself alone, whatever the features. It must be said."""

    @pytest.mark.parametrize("rows", ["logits", "margin", "label"])
    def test_train_scores_vanish_off_the_diagonal_with_a_warning(self, rows):
        problem = BY_NAME["few-examples"].build()  # n = 5, N = 10 < p = 27
        scores = attribute(problem.model, problem.train, curvature=GaussNewton(rows=rows, damping=0.0, form="dual"))
        losses = [
            reference.loss(z, int(y))
            for z, y in zip(reference.all_logits(problem, problem.train[0]), problem.train[1], strict=True)
        ]
        odds = np.expm1(losses)  # (1 - q_y) / q_y
        expected = problem.n * (np.ones(5) if rows == "label" else odds)
        assert_allclose(scores.self_influence(), expected, rtol=1e-9)
        assert_allclose(scores.matrix, np.diag(expected), atol=1e-9 * expected.max())
        assert any("interpolate" in warning for warning in scores.meta["warnings"])

    def test_no_warning_where_it_does_not(self):
        for problem, curvature in (
            (BY_NAME["few-examples"].build(), GaussNewton(damping=1e-2, form="dual")),
            (BY_NAME["fitted"].build(), GaussNewton(damping=0.0, form="dual")),
        ):
            warnings = score(problem, curvature).meta["warnings"]
            assert not any("interpolate" in warning for warning in warnings)


class TestSampledRows:
    """A Monte-Carlo estimate is not exact: it must converge to the truth, and at its rate."""

    def test_it_converges_to_the_exact_rows(self):
        problem = BY_NAME["mlp"].build()
        exact = score(problem, GaussNewton(damping=0.05)).matrix
        errors = []
        for samples in (4, 64, 1024):
            drawn = [
                score(
                    problem, GaussNewton(rows="sampled", samples=samples, seed=seed, damping=0.05, form="primal")
                ).matrix
                for seed in range(3)
            ]
            errors.append(np.mean([np.linalg.norm(one - exact) for one in drawn]) / np.linalg.norm(exact))
        assert (
            errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2
        )  # 1 / sqrt(16) on average; half of that is allowed
        assert errors[2] < 0.1

    def test_forms_agree_on_the_same_draws(self):
        """The long form of the dual, whose rows do not span the gradients, against plain algebra in the primal."""
        problem = BY_NAME["mlp"].build()
        for damping in (0.05, 0.5):
            primal, dual = (
                score(problem, GaussNewton(rows="sampled", samples=3, damping=damping, form=form)).matrix
                for form in ("primal", "dual")
            )
            assert_scores(dual, primal, 1e-8)

    def test_seed_decides_the_draws(self):
        problem = BY_NAME["mlp"].build()
        a, b, c = (score(problem, GaussNewton(rows="sampled", seed=seed)).matrix for seed in (0, 0, 1))
        assert_scores(a, b, 1e-9)
        assert abs(a - c).max() > 1e-3 * abs(a).max()


def linear(theta):
    model = nn.Linear(theta.shape[1] - 1, theta.shape[0]).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(theta[:, :-1]))
        model.bias.copy_(torch.from_numpy(theta[:, -1]))
    return model


def test_leave_one_out_correction_predicts_real_deletions_better():
    """The ordering of MATHS section 7 on 200 digits with L2 1e-3, where leverages are high: 30 real deletions."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    X, y, Xq, yq = X[:200], y[:200], X[1000:1100], y[1000:1100]
    theta = reference.fit_softmax(X, y, 10, l2=1e-3)
    before = reference.softmax_losses(Xq, yq, theta)
    removed = np.random.default_rng(0).choice(200, 30, replace=False)
    change = np.zeros((100, 30))
    for column, i in enumerate(removed):
        weights = np.full(200, 1 / 200)
        weights[i] = 0
        change[:, column] = (
            reference.softmax_losses(Xq, yq, reference.fit_softmax(X, y, 10, l2=1e-3, weights=weights, start=theta))
            - before
        )
    sides = [(torch.from_numpy(a), torch.from_numpy(b).long()) for a, b in ((X, y), (Xq, yq))]
    found = {}
    for corrected in (False, True):
        curvature = GaussNewton(damping=1e-3, form="primal", leave_one_out=corrected)
        predicted = attribute(linear(theta), *sides, curvature=curvature).matrix[:, removed] / 200
        slope = (predicted * change).sum() / (predicted**2).sum()
        found[corrected] = np.corrcoef(predicted.ravel(), change.ravel())[0, 1], slope
    assert found[True][0] > found[False][0] > 0.8
    assert abs(found[True][1] - 1) < 0.5 < abs(found[False][1] - 1)


class TestRefused:
    @pytest.mark.untyped
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rows": "hessian"}, "rows must be one of"),
            ({"form": "both"}, "form must be"),
            ({"damping": "none"}, "'auto'"),
            ({"damping": -1.0}, "damping"),
            ({"rcond": float("nan"), "damping": 0.1}, "rcond"),
            ({"samples": 0}, "samples"),
            ({"leave_one_out": True, "rows": "sampled"}, "leave-one-out"),
            ({"leave_one_out": True, "damping": 0.0}, "leave-one-out.*damping > 0"),
        ],
        ids=str,
    )
    def test_impossible_settings_at_birth(self, options, words):
        with pytest.raises(UsageError, match=words):
            GaussNewton(**options)

    @pytest.mark.parametrize("form", ["primal", "dual"])
    def test_a_layer_that_runs_for_some_examples_alone(self, form):
        class Sometimes(nn.Module):
            def __init__(self):
                super().__init__()
                self.out, self.more = nn.Linear(4, 3), nn.Linear(4, 3)

            def forward(self, x):
                return self.out(x) + (self.more(x) if bool((x[:, 0] > 0).any()) else 0)

        X, y = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
        X[:, 0] = 1.0
        queries = X.clone()
        queries[:, 0] = -1.0
        curvature = GaussNewton(form=form, damping=0.05)
        with pytest.raises(SolveError, match=r"Layer 'more' did not run; leave its parameters out"):
            attribute(Sometimes().double(), (X, y), (queries, y), parameters="all", curvature=curvature)

    def test_another_loss(self):
        with pytest.raises(UsageError, match=r"cross-entropy.*Hessian\(\)"):
            score(BY_NAME["mlp"].build(), GaussNewton(), loss=lambda z, y: z.square().sum(1))

    def test_no_class_to_tell_apart(self):
        problem = replace(BY_NAME["mlp"].build(), model=nn.Linear(4, 1).double())
        with pytest.raises(Exception, match="at least two classes"):
            score(problem, GaussNewton())
