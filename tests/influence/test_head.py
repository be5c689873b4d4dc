"""The closed form beyond the contract: its spectrum, and heads whose examples are all fitted beyond rounding."""

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, HEAD_CASES, Problem, features
from methods import assert_scores, pair_name, parts
from numpy.testing import assert_allclose
from torch import nn
from upweight import GradientDot, Hessian, LinearHead, attribute


def score(problem, curvature, **options):
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature, **options
    )


@pytest.mark.parametrize("case", HEAD_CASES, ids=pair_name)
def test_spectrum_is_that_of_the_dense_hessian(case):
    """In its small space it has every eigenvalue of the full matrix that is not zero."""
    values = np.linalg.eigvalsh(parts(case).ggn)[::-1]
    kept = values[values > 1e-11 * values[0]]
    spectrum = score(case.build(), LinearHead()).spectrum
    assert spectrum.rank == len(kept)
    assert_allclose(spectrum.eigenvalues[: len(kept)], kept, rtol=1e-9)
    assert_allclose(
        [spectrum.lambda_max, spectrum.smallest_kept, spectrum.condition],
        [kept[0], kept[-1], kept[0] / kept[-1]],
        rtol=1e-9,
    )
    assert (spectrum.negative, spectrum.damping) == (0, 0)
    assert spectrum.trace_kept == pytest.approx(1)


@pytest.mark.parametrize("name", ["head", "few-examples", "dead-units", "two-classes"])
def test_size_is_contrasts_times_rank_of_the_features(name):
    case = BY_NAME[name]
    problem = case.build()
    phi = features(problem, problem.train[0])
    rank = np.linalg.matrix_rank(np.c_[phi, np.ones(len(phi))])
    assert score(problem, LinearHead()).spectrum.size == (problem.num_classes - 1) * rank


def test_damped_facts_count_the_damping():
    values = np.linalg.eigvalsh(parts(BY_NAME["head"]).ggn)[::-1][:21]
    spectrum = score(BY_NAME["head"].build(), LinearHead(damping=0.5)).spectrum
    assert spectrum.damping == pytest.approx(0.5)
    assert_allclose([spectrum.lambda_max, spectrum.smallest_kept], [values[0], values[-1] + 0.5], rtol=1e-9)
    assert_allclose(spectrum.condition, (values[0] + 0.5) / (values[-1] + 0.5), rtol=1e-9)


@pytest.mark.parametrize("rcond", [1e-3, 1e-1])
def test_relative_cutoff_is_that_of_the_loops(rcond):
    ask = parts(BY_NAME["head"])
    scores = score(ask.problem, LinearHead(rcond=rcond))
    assert_scores(scores.matrix, ask.through(reference.inverse(ask.ggn, rcond=rcond)), 1e-8)
    assert scores.spectrum.rank < 21 and scores.spectrum.trace_kept < 1


def test_head_and_dense_hessian_agree_entry_by_entry():
    """Two independent roads of the package, on the problem with the worst condition."""
    problem = BY_NAME["image-head"].build()
    assert_scores(score(problem, LinearHead()).matrix, score(problem, Hessian()).matrix, 1e-8)


def margins(problem: Problem, wanted: float) -> Problem:
    """The same problem with logits so large that every train example has at least this margin, or its opposite."""
    z = reference.all_logits(problem, problem.train[0])
    labels = torch.from_numpy(z.argmax(1) if wanted > 0 else z.argmin(1))
    gaps = np.diff(np.sort(z, axis=1), axis=1)[:, -1 if wanted > 0 else 0]
    with torch.no_grad():
        for parameter in problem.model[2].parameters():
            parameter.mul_(abs(wanted) / gaps.min())
    return Problem(
        model=problem.model,
        train=(problem.train[0], labels),
        queries=problem.queries,
        parameters=problem.parameters,
        names=problem.names,
        num_classes=problem.num_classes,
    )


@pytest.mark.parametrize("curvature", [LinearHead(), Hessian(), GradientDot(), GradientDot(cosine=True)], ids=repr)
def test_train_set_fitted_beyond_rounding_scores_nothing_and_says_so(curvature):
    """With margins above 1000 no gradient and no curvature is left in float64: zero, not NaN, and a warning."""
    problem = margins(BY_NAME["head"].build(), 1000.0)
    scores = score(problem, curvature)
    assert not scores.matrix.any()
    assert scores.meta["zero_gradients"] == problem.n
    assert any("gradient of exactly zero" in warning for warning in scores.meta["warnings"])


def test_train_set_wrong_beyond_rounding_has_finite_damped_scores():
    """With margins below -1000 the curvature is gone and the gradients are not: (0 + damping)^-1 is plain."""
    problem = margins(BY_NAME["two-classes"].build(), -1000.0)
    ask_G = reference.gradients(problem, *problem.train), reference.gradients(problem, *problem.queries)
    want = reference.dots(ask_G[1], ask_G[0]) / 0.1
    assert_scores(score(problem, LinearHead(damping=0.1)).matrix, want, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("margin", [-300.0, -80.0, -20.0, 0.0, 20.0, 40.0])
def test_a_saturated_example_keeps_its_digits(margin, dtype):
    """One train example at each margin beside ordinary ones: its score is right to the digits its logits have."""
    rng = np.random.default_rng(0)
    X, y = torch.from_numpy(rng.normal(size=(30, 3))), torch.arange(30) % 2
    head = nn.Linear(3, 2).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 0.25]]))
        head.bias.zero_()
        X[0] = torch.tensor([-margin, 0.0, 0.0])  # z = (0, -margin) and label 0
    problem = Problem(
        model=head.to(dtype),
        train=(X.to(dtype), y),
        queries=(X[1:9].to(dtype), y[1:9]),
        parameters="head",
        names=("weight", "bias"),
        num_classes=2,
    )
    G_train, G_query = reference.gradients(problem, *problem.train), reference.gradients(problem, *problem.queries)
    want = reference.score_matrix(G_query, reference.inverse(reference.mean_ggn(problem), damping=1e-3), G_train)
    # float32 stores 24 bits of each score; the logits of this model are exact in either type
    rtol = 1e-11 if dtype == torch.float64 else 1e-6
    assert_scores(score(problem, LinearHead(damping=1e-3)).matrix, want, rtol)


def test_a_deep_body_sees_only_its_head_analysed():
    """The features are computed once; what comes before the head may be anything, here a convolution in training mode."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(18, 3)).double()
    X, y = torch.rand(25, 1, 5, 5, dtype=torch.float64), torch.arange(25) % 3
    got = attribute(model, (X, y))
    problem = Problem(
        model=model, train=(X, y), queries=(X, y), parameters="head", names=("1.weight", "1.bias"), num_classes=3
    )
    G = reference.gradients(problem, X, y)
    assert_scores(got.matrix, reference.score_matrix(G, reference.inverse(reference.mean_ggn(problem)), G), 1e-8)
    with torch.no_grad():
        phi = model.eval()[0](X).numpy()
    assert_allclose(got.train.features, phi, rtol=1e-12)


@pytest.mark.parametrize("decay", [1e-3, 0.0, None])
def test_the_automatic_damping_is_the_weight_decay_and_else_follows_the_spectrum(decay):
    problem = BY_NAME["fitted"].build()

    def scores(damping):
        asked = {"parameters": "head", "curvature": LinearHead(damping=damping), "weight_decay": decay}
        return attribute(problem.model, problem.train, problem.queries, **asked)

    auto = scores("auto")
    wanted = decay or auto.spectrum.lambda_max / 1000
    assert auto.spectrum.damping == pytest.approx(wanted, rel=1e-6)
    assert_allclose(auto.matrix, scores(auto.spectrum.damping).matrix, rtol=1e-9)
    assert auto.meta["curvature"]["damping"] == "auto"
