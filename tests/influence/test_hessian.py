"""The dense Hessian beyond the contract: indefinite spectra, cutoffs, any loss, and the procedure of the paper."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME
from methods import assert_scores, parts
from numpy.testing import assert_allclose
from torch import nn
from upweight import Hessian, LinearHead, SolveError, UpweightError, UsageError, attribute

NON_CONVEX = ["mlp", "some-layers", "conv", "tied"]


def score(problem, curvature, **options):
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


class TestIndefinite:
    @pytest.mark.parametrize("name", NON_CONVEX)
    def test_spectrum_facts_are_those_of_numpy(self, name):
        case = BY_NAME[name]
        values = np.linalg.eigvalsh(parts(case).hessian)
        kept = abs(values) > 1e-11 * abs(values).max()
        spectrum = score(case.build(), Hessian()).spectrum
        assert (spectrum.size, spectrum.rank) == (len(values), kept.sum())
        assert spectrum.negative == (values < -1e-11 * abs(values).max()).sum() > 0
        assert_allclose(
            [spectrum.lambda_max, spectrum.lambda_min, spectrum.smallest_kept, spectrum.condition],
            [values.max(), values.min(), abs(values[kept]).min(), abs(values[kept]).max() / abs(values[kept]).min()],
            rtol=1e-9,
        )
        assert_allclose(spectrum.negative_trace, -values[values < 0].sum() / abs(values).sum(), rtol=1e-9)
        assert_allclose(spectrum.trace_kept, abs(values[kept]).sum() / abs(values).sum(), rtol=1e-9)
        assert_allclose(spectrum.eigenvalues, values[::-1], atol=1e-13)
        assert 0 < spectrum.cutoff < 1e-11 * abs(values).max() and spectrum.damping == 0

    @pytest.mark.parametrize("name", NON_CONVEX)
    def test_dropping_negative_eigenvalues_changes_rank_and_scores(self, name):
        case = BY_NAME[name]
        values = np.linalg.eigvalsh(parts(case).hessian)
        dropped, inverted = score(case.build(), Hessian(negative="drop")), score(case.build(), Hessian())
        assert dropped.spectrum.rank == (values > 1e-11 * abs(values).max()).sum() < inverted.spectrum.rank
        assert abs(dropped.matrix - inverted.matrix).max() > 1e-2 * abs(inverted.matrix).max()

    @pytest.mark.parametrize("name", NON_CONVEX)
    def test_damping_that_leaves_it_indefinite_is_refused_by_name(self, name):
        case = BY_NAME[name]
        lambda_min = np.linalg.eigvalsh(parts(case).hessian).min()
        with pytest.raises(SolveError, match=rf"{lambda_min:.3g}"):
            score(case.build(), Hessian(damping=-0.5 * lambda_min))
        with pytest.raises(SolveError, match=rf"{lambda_min:.3g}"):
            score(case.build(), Hessian(damping=-(1 - 1e-9) * lambda_min))

    @pytest.mark.parametrize("name", NON_CONVEX)
    def test_damping_just_above_is_accepted(self, name):
        """A tenth of this damping would be refused; asking how much the damping matters must not stumble over that."""
        case = BY_NAME[name]
        damping = -1.1 * np.linalg.eigvalsh(parts(case).hessian).min()
        scores = score(case.build(), Hessian(damping=damping))
        want = parts(case).through(reference.inverse(parts(case).hessian, damping=damping))
        assert_scores(scores.matrix, want, 1e-8)
        assert scores.spectrum.smallest_kept == pytest.approx(damping / 11, rel=1e-6)
        assert "top1_changed_at_10x" in scores.spectrum.sensitivity

    def test_damping_with_drop_inverts_the_damped_positive_part(self):
        case = BY_NAME["mlp"]
        want = parts(case).through(reference.inverse(parts(case).hessian, damping=0.05, negative="drop"))
        assert_scores(score(case.build(), Hessian(damping=0.05, negative="drop")).matrix, want, 1e-8)


class TestCutoffs:
    @pytest.mark.parametrize("name", ["head", "mlp", "conv"])
    @pytest.mark.parametrize("rcond", [1e-2, 0.2])
    def test_relative_cutoff(self, name, rcond):
        ask = parts(BY_NAME[name])
        want = ask.through(reference.inverse(ask.hessian, rcond=rcond))
        scores = score(ask.problem, Hessian(rcond=rcond))
        assert_scores(scores.matrix, want, 1e-8)
        assert scores.spectrum.rank < np.linalg.matrix_rank(ask.hessian)  # it does cut
        assert scores.spectrum.cutoff == pytest.approx(rcond * abs(np.linalg.eigvalsh(ask.hessian)).max())

    @pytest.mark.parametrize("name", ["head", "mlp", "conv"])
    def test_absolute_cutoff(self, name):
        ask = parts(BY_NAME[name])
        scores = score(ask.problem, Hessian(absolute=0.05))
        assert_scores(scores.matrix, ask.through(reference.inverse(ask.hessian, absolute=0.05)), 1e-8)
        assert scores.spectrum.rank == (abs(np.linalg.eigvalsh(ask.hessian)) > 0.05).sum()

    @pytest.mark.parametrize("name", ["head", "dead-units", "few-examples", "no-bias"])
    def test_default_finds_the_rank_of_a_singular_head(self, name):
        """(C - 1) times the rank of the features: a shift of all logits is seen by no loss."""
        ask = parts(BY_NAME[name])
        wanted = (np.linalg.eigvalsh(ask.hessian) > 1e-11 * np.linalg.eigvalsh(ask.hessian).max()).sum()
        assert score(ask.problem, Hessian()).spectrum.rank == wanted
        assert score(ask.problem, LinearHead()).spectrum.rank == wanted

    @pytest.mark.parametrize(("option", "bad"), [("damping", -1.0), ("rcond", float("nan")), ("absolute", -1e-3)])
    def test_impossible_settings_are_refused_at_birth(self, option, bad):
        with pytest.raises(UsageError, match=option):
            Hessian(**{option: bad})

    def test_contradicting_settings_are_refused_at_birth(self):
        with pytest.raises(UsageError, match="not both"):
            Hessian(rcond=1e-3, absolute=1e-3)
        with pytest.raises(UsageError, match="batch_size"):
            Hessian(batch_size=0)

    @pytest.mark.untyped
    def test_unknown_settings_are_refused_at_birth(self):
        with pytest.raises(UsageError, match="'invert' or 'drop'"):
            Hessian(negative="keep")


class TestPaper:
    """The source paper sums batch means and never divides: its H is (n / b) times the mean Hessian."""

    @staticmethod
    def paper_scores(problem, b, cutoff):
        n = problem.n
        H = sum(reference.mean_hessian(problem, rows=range(start, start + b)) for start in range(0, n, b))
        U, s, Vh = np.linalg.svd(H)
        kept = s > cutoff
        H_pinv = sum(np.outer(Vh[a], U[:, a]) / s[a] for a in np.flatnonzero(kept))
        G_test = reference.gradients(problem, *problem.queries)
        G_train = reference.gradients(problem, *problem.train)
        return G_test @ H_pinv @ G_train.T, kept.sum()

    @pytest.mark.parametrize("b", [1, 5])
    def test_cutoff_of_the_paper(self, b):
        """1e-20, where the Hessian is regular: a layer below the head, as no shift of the logits can undo it."""
        problem = BY_NAME["mlp"].build()
        below = replace(
            problem,
            train=(problem.train[0][:25], problem.train[1][:25]),
            parameters=("0.weight",),
            names=("0.weight",),
        )
        paper, kept = self.paper_scores(below, b, 1e-20)
        ours = score(below, Hessian(absolute=1e-20 * b / 25))
        assert_scores(ours.matrix * b / 25, paper, 1e-8)
        assert ours.spectrum.rank == kept == below.p

    def test_cutoff_of_the_paper_inverts_rounding_noise_of_a_head(self):
        """On the head itself the cutoff keeps directions that are zero but for rounding, and the facts show it."""
        problem = BY_NAME["head"].build()
        spectrum = score(problem, Hessian(absolute=1e-20 * 5 / problem.n)).spectrum
        assert spectrum.rank > score(problem, Hessian()).spectrum.rank == 21  # 3 contrasts of 4 classes x 7 features
        assert spectrum.condition > 1e14

    @pytest.mark.parametrize(("b", "rank"), [(1, 18), (5, 13), (20, 10)])
    def test_cutoff_of_its_code_depends_on_the_batch_size(self, b, rank):
        problem = BY_NAME["head"].build()  # n = 40
        paper, kept = self.paper_scores(problem, b, 5e-2)
        ours = score(problem, Hessian(absolute=5e-2 * b / problem.n))
        assert_scores(ours.matrix * b / problem.n, paper, 1e-8)
        assert ours.spectrum.rank == kept == rank

    def test_batches_of_the_assembly_do_not(self):
        problem = BY_NAME["mlp"].build()  # n = 29: batches of 5 leave one of 4
        want = score(problem, Hessian(batch_size=29)).matrix
        for batch_size in (1, 5, 28):
            assert_scores(score(problem, Hessian(batch_size=batch_size)).matrix, want, 1e-9)


def squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Half the squared distance to the one-hot label, example by example."""
    return 0.5 * (logits - nn.functional.one_hot(labels, logits.shape[1]).to(logits)).square().sum(1)


class TestAnyLoss:
    def test_squared_loss_of_a_linear_model_is_ridge_regression(self):
        """The closed form: H = I (x) (Phi^T Phi / n), so score = (r_t . r_i) phi_t^T (Phi^T Phi / n + damping)^-1 phi_i."""
        problem = BY_NAME["bare-linear"].build()
        X, y = (part.numpy() for part in problem.train)
        Xq, yq = (part.numpy() for part in problem.queries)
        W, b = (parameter.detach().numpy() for parameter in problem.model.parameters())
        phi, phi_q = np.c_[X, np.ones(len(X))], np.c_[Xq, np.ones(len(Xq))]
        r, r_q = X @ W.T + b - np.eye(3)[y], Xq @ W.T + b - np.eye(3)[yq]
        solved = np.linalg.solve(phi.T @ phi / len(X) + 0.03 * np.eye(phi.shape[1]), phi.T)
        want = (r_q @ r.T) * (phi_q @ solved)
        assert_scores(score(problem, Hessian(damping=0.03), loss=squared).matrix, want, 1e-10)

    def test_cross_entropy_given_as_a_loss_is_cross_entropy(self):
        problem = BY_NAME["mlp"].build()

        def given(logits, labels):
            return nn.functional.cross_entropy(logits, labels, reduction="none")

        assert_scores(score(problem, Hessian(), loss=given).matrix, score(problem, Hessian()).matrix, 1e-9)

    def test_closed_form_of_the_head_refuses_another_loss(self):
        with pytest.raises(UsageError, match=r"cross-entropy.*Hessian\(\)"):
            score(BY_NAME["head"].build(), LinearHead(), loss=squared)

    def test_loss_that_is_no_loss_per_example_is_refused(self):
        with pytest.raises(UpweightError, match="loss"):
            score(BY_NAME["head"].build(), Hessian(), loss=lambda z, y: squared(z, y).mean())


def test_curvature_too_large_to_be_dense_is_refused_before_it_is_formed():
    problem = replace(BY_NAME["bare-linear"].build(), model=nn.Linear(6, 3))
    wide = nn.Sequential(nn.Linear(6, 6000), nn.Tanh(), nn.Linear(6000, 3)).double()
    with pytest.raises(SolveError, match=r"60,003 parameters.*GaussNewton\(\)"):
        score(replace(problem, model=wide, parameters="all"), Hessian())


def test_parameters_that_the_loss_does_not_reach_score_nothing():
    class Unused(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.idle = inner, nn.Linear(2, 2).double()

        def forward(self, x):
            return self.inner(x)

    problem = BY_NAME["some-layers"].build()
    want = score(problem, Hessian()).matrix
    wrapped = replace(
        problem,
        model=Unused(problem.model),
        parameters=(*(f"inner.{name}" for name in problem.names), "idle.weight", "idle.bias"),
    )
    assert_scores(score(wrapped, Hessian()).matrix, want, 1e-9)


@pytest.mark.parametrize(
    ("name", "curvature", "damped"),
    [
        ("head", Hessian(rcond=1e-2), False),
        ("mlp", Hessian(rcond=1e-2), False),
        ("head", Hessian(damping=1e-2), True),
        ("head", LinearHead(damping=1e-2), True),
        ("head", LinearHead(rcond=1e-2), False),
    ],
)
def test_sensitivity_is_what_a_tenth_and_ten_times_would_change(name, curvature, damped):
    ask = parts(BY_NAME[name])
    scores = score(ask.problem, curvature)
    cutoff = scores.spectrum.cutoff

    def neighbours(factor):
        inverse = (
            reference.inverse(ask.hessian, damping=factor * curvature.damping)
            if damped
            else reference.inverse(ask.hessian, absolute=factor * cutoff)
        )
        return [reference.ranking(row)[:5] for row in ask.through(inverse)]

    here = neighbours(1.0)
    for label, factor in (("0.1x", 0.1), ("10x", 10.0)):
        there = neighbours(factor)
        first = np.mean([a[0] != b[0] for a, b in zip(here, there, strict=True)])
        replaced = np.mean([len(set(a) - set(b)) / 5 for a, b in zip(here, there, strict=True)])
        assert scores.spectrum.sensitivity[f"top1_changed_at_{label}"] == pytest.approx(first)
        assert scores.spectrum.sensitivity[f"top5_changed_at_{label}"] == pytest.approx(replaced)
