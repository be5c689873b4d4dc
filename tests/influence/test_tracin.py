"""Gradient dot products along a training: against loops at every checkpoint, and as the limit of an unrolled training."""

import copy

import numpy as np
import pytest
import reference
import torch
import upweight
from cases import BY_NAME
from numpy.testing import assert_allclose, assert_array_equal
from recorded import trained
from torch import nn
from upweight import GradientDot, Unrolled, UsageError

RATES = (0.5, 0.0, 2.0)


def moved(model, seed):
    """A model with other weights everywhere."""
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in other.parameters():
            value += 0.3 * torch.randn(value.shape, generator=draw, dtype=torch.float64)
    return other


@pytest.mark.parametrize("name", ["fitted", "mlp", "image-head"])
@pytest.mark.parametrize("label", ["true", "predicted"])
def test_equals_the_loops_at_every_checkpoint(name, label):
    from dataclasses import replace

    problem = BY_NAME[name].build()
    models = [moved(problem.model, seed) for seed in range(3)]
    scores = upweight.attribute(
        problem.model, problem.train, problem.queries,
        parameters=problem.parameters, query_label=label,
        curvature=GradientDot(checkpoints=[model.state_dict() for model in models], rates=RATES),
    )  # fmt: skip
    y = scores.queries.label if label == "true" else scores.queries.prediction  # of the finished model
    want = np.zeros((problem.m, problem.n))
    for rate, model in zip(RATES, models, strict=True):
        there = replace(problem, model=model.eval())
        G_query = reference.gradients(there, problem.queries[0], y)
        want += rate * reference.dots(G_query, reference.gradients(there, *problem.train))
    assert_allclose(scores.matrix, want, rtol=0, atol=1e-10 * abs(want).max())


def test_one_checkpoint_is_the_plain_product_times_its_rate():
    problem = BY_NAME["mlp"].build()
    options = {"parameters": problem.parameters}
    plain = upweight.attribute(problem.model, problem.train, problem.queries, curvature=GradientDot(), **options)
    curvature = GradientDot(checkpoints=[problem.model.state_dict()], rates=[0.25])
    scores = upweight.attribute(problem.model, problem.train, problem.queries, curvature=curvature, **options)
    assert_allclose(scores.matrix, 0.25 * plain.matrix, rtol=1e-12, atol=1e-14)
    assert plain.meta["unit"] == "squared nats per squared unit of parameter"
    assert "a gradient step on the example" in plain.meta["sign"]
    assert scores.meta["unit"] == "nats per unit weight"
    assert "raises the query's loss by about score / n" in scores.meta["sign"]


def test_slow_training_is_nearly_its_tracin():
    """Short steps without momentum: what they add up to hardly curves, so the dot products along the way are the derivative."""
    case = trained("mlp", epochs=3)
    case.momentum = case.decay = 0.0
    case.rates = [1e-4] * len(case.rates)
    case.model = case.fit()
    recording = case.recording()
    scores = [
        upweight.attribute(
            case.model, (case.X, case.y), case.queries, parameters=recording.trained, curvature=curvature
        )
        for curvature in (Unrolled(recording), GradientDot.along(recording))
    ]
    # a batch of 7 among those of 8 weighs its examples by 1/7: the dot products know only the mean rate
    a, b = (one.matrix for one in scores)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.995
    assert abs(a - b).max() < 0.15 * abs(a).max()
    assert a.sum() == pytest.approx(b.sum(), rel=0.02)


def test_along_tells_points_and_rates():
    case = trained("cnn", epochs=8)
    curvature = GradientDot.along(case.recording(), every=2)
    assert sum(curvature.rates) == pytest.approx(sum(case.rates) / (1 - case.momentum))
    assert len(curvature.checkpoints) == len(curvature.rates) == 3  # 24 steps in stretches of 5
    names = {*dict(case.model.named_parameters()), *dict(case.model.named_buffers())}
    assert all(set(point) == names for point in curvature.checkpoints)
    middle = copy.deepcopy(case)
    middle.batches, middle.rates = case.batches[:5], case.rates[:5]  # the middle of the first ten steps
    model = middle.fit()
    for name, value in model.state_dict().items():
        assert_array_equal(curvature.checkpoints[0][name], value)


def test_settings_tell_checkpoints_apart():
    problem = BY_NAME["mlp"].build()
    states = [moved(problem.model, seed).state_dict() for seed in (0, 1)]
    told = [GradientDot(checkpoints=[state], rates=[1.0]).settings() for state in states]
    assert told[0] != told[1]
    assert GradientDot().settings() == {"name": "GradientDot", "cosine": False}


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"checkpoints": [{}]}, "1 checkpoints and 0 rates"),
            ({"checkpoints": [{}], "rates": [-1.0]}, r"A rate is -1\.0"),
            ({"checkpoints": [{}], "rates": [1.0], "cosine": True}, "leave checkpoints out"),
        ],
    )
    def test_options(self, options, words):
        with pytest.raises(UsageError, match=words):
            GradientDot(**options)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda state: state.pop("2.weight"), r"lacks '2\.weight'"),
            (lambda state: state.update(other=torch.zeros(1)), "holds 'other', which is no weight of the model"),
            (lambda state: state.update({"2.weight": torch.zeros(1, 2)}), r"'2\.weight' of shape \[1, 2\] instead of"),
        ],
    )
    def test_checkpoints_of_another_model(self, change, words):
        problem = BY_NAME["fitted"].build()
        assert isinstance(problem.model[2], nn.Linear)
        state = dict(problem.model.state_dict())
        change(state)
        with pytest.raises(UsageError, match=words):
            upweight.attribute(
                problem.model, problem.train, problem.queries, curvature=GradientDot(checkpoints=[state], rates=[1.0])
            )

    def test_every(self):
        with pytest.raises(UsageError, match="every is 0"):
            GradientDot.along(trained().recording(), every=0)
