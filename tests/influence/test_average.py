"""Means of scores: numbers, what is said of them, and what cannot be averaged."""

import copy

import numpy as np
import pytest
import torch
import upweight
from cases import BY_NAME
from numpy.testing import assert_allclose, assert_array_equal
from recorded import trained
from upweight import GaussNewton, GradientDot, UsageError, average
from upweight.influence.average import average_as_read


def models(count=3):
    problem = BY_NAME["fitted"].build()
    found = []
    for seed in range(count):
        model = copy.deepcopy(problem.model)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.parameters():
                value += 0.2 * torch.randn(value.shape, generator=draw, dtype=torch.float64)
        found.append(model)
    return problem, found


def scored(problem, model, **options):
    return upweight.attribute(model, problem.train, problem.queries, **options)


def test_mean_of_the_matrices_and_of_what_is_known():
    problem, each = models()
    every = [scored(problem, model, train_scores=True) for model in each]
    mean = average(every)
    assert_allclose(mean.matrix, np.mean([one.matrix for one in every], axis=0), rtol=1e-14)
    assert_allclose(mean.on_train.matrix, np.mean([one.on_train.matrix for one in every], axis=0), rtol=1e-14)
    assert mean.on_train.on_itself and not mean.on_itself
    assert_allclose(mean.queries.loss, np.mean([one.queries.loss for one in every], axis=0), rtol=1e-14)
    logits = torch.stack([model.eval()(problem.queries[0]).softmax(1) for model in each]).mean(0)
    assert_array_equal(mean.queries.prediction, logits.argmax(1))
    onehot = torch.nn.functional.one_hot(problem.queries[1], problem.num_classes)
    assert_allclose(mean.queries.residual, (logits - onehot).detach(), atol=1e-14)
    assert mean.queries.features is None
    settings = every[0].meta["curvature"]
    assert mean.meta["curvature"] == {**settings, "average": 3}  # what all have alike
    assert settings["damping"] is not None
    assert mean.meta["sign"].startswith("mean over 3 of: + g_query^T H^+ g_train")
    assert [one["name"] for one in mean.meta["runs"]] == ["LinearHead"] * 3
    assert mean.meta["unit"] == "nats per unit weight"
    assert len(mean.class_match(3)["rate"]) == 3  # reports take it as any other


def test_rows_of_one_size_count_alike():
    """However large the loss of a query is in one of the models; a query without any score stays without."""
    problem, each = models()
    every = [scored(problem, model, train_scores=True) for model in each]
    every[0].matrix[1] *= 1000
    every[1].matrix[2] = 0
    mean = average(every, unit_rows=True)
    for name in ("queries", "train"):
        matrices = [one.matrix if name == "queries" else one.on_train.matrix for one in every]
        found = mean.matrix if name == "queries" else mean.on_train.matrix
        for t in range(len(found)):
            sizes = [np.sqrt((matrix[t] ** 2).mean()) for matrix in matrices]
            rows = [matrix[t] / size if size else matrix[t] for matrix, size in zip(matrices, sizes, strict=True)]
            assert_allclose(found[t], sum(rows) / 3, rtol=1e-12)
    assert mean.meta["unit"].startswith("none") and mean.meta["curvature"]["unit_rows"] is True
    assert mean.meta["sign"].startswith(
        "mean over 3, each query's scores divided by their root mean square, of: + g_query"
    )
    assert every[0].meta["unit"] == "nats per unit weight"


def test_a_list_of_models_is_their_average():
    problem, each = models(2)
    mean = scored(problem, each, curvature=GaussNewton(damping=0.01))
    every = [scored(problem, model, curvature=GaussNewton(damping=0.01)).matrix for model in each]
    assert_allclose(mean.matrix, np.mean(every, axis=0), rtol=1e-14)


def test_every_model_with_a_recording_of_its_own():
    cases = [trained(), trained(epochs=4)]
    recordings = [case.recording() for case in cases]
    mean = upweight.attribute(
        [case.model for case in cases], (cases[0].X, cases[0].y), cases[0].queries,
        parameters="all", curvature=[upweight.Unrolled(recording) for recording in recordings],
    )  # fmt: skip
    every = [
        upweight.attribute(
            case.model, (case.X, case.y), case.queries, parameters="all", curvature=upweight.Unrolled(recording)
        ).matrix
        for case, recording in zip(cases, recordings, strict=True)
    ]
    assert_allclose(mean.matrix, np.mean(every, axis=0), rtol=1e-14)


def test_saved_and_read_back(tmp_path):
    problem, each = models(2)
    mean = scored(problem, each)
    mean.save(tmp_path / "mean.h5")
    again = upweight.open_scores(tmp_path / "mean.h5")
    assert_array_equal(np.array(again.matrix), mean.matrix)
    assert again.meta["curvature"] == mean.meta["curvature"]


def test_settings_that_differ_are_said_of_each_alone():
    problem, (model, _) = models(2)
    every = [scored(problem, model, curvature=GaussNewton(damping=damping)) for damping in (0.01, 0.1)]
    mean = average(every)
    assert "damping" not in mean.meta["curvature"] and mean.meta["curvature"]["rows"] == "logits"
    assert [one["damping"] for one in mean.meta["runs"]] == [0.01, 0.1]


def test_rows_of_stores_are_averaged_as_they_are_read(tmp_path):
    problem, each = models(2)
    every = [scored(problem, model) for model in each]
    for i, one in enumerate(every):
        one.save(tmp_path / f"{i}.h5")
    mean = average_as_read([upweight.open_scores(tmp_path / f"{i}.h5") for i in range(2)])
    assert not isinstance(mean.matrix, np.ndarray) and mean.matrix.shape == every[0].matrix.shape
    assert_array_equal(mean.matrix[1:3], ((every[0].matrix + every[1].matrix) / 2)[1:3])
    assert mean.matrix[0:2].dtype == every[0].matrix.dtype


class TestRefusals:
    def test_one_alone(self):
        problem, (model,) = models(1)
        with pytest.raises(UsageError, match="give at least two"):
            average([scored(problem, model)])

    def test_other_examples_unit_or_label(self):
        problem, each = models(2)
        first = scored(problem, each[0])
        for side, train, queries in (
            ("train", tuple(part.flip(0) for part in problem.train), problem.queries),
            ("queries", problem.train, tuple(part[:-1] for part in problem.queries)),
        ):
            other = upweight.attribute(each[1], train, queries)
            with pytest.raises(UsageError, match=f"not of the same {side}"):
                average([first, other])
        with pytest.raises(UsageError, match="differ in unit"):
            average([first, scored(problem, each[1], curvature=GradientDot())])
        with pytest.raises(UsageError, match="differ in query_label"):
            average([first, scored(problem, each[1], query_label="predicted")])

    def test_predictions_that_differ(self):
        problem, each = models(2)
        with torch.no_grad():
            each[1][2].weight.neg_()
        with pytest.raises(UsageError, match="predict different classes"):
            scored(problem, each, query_label="predicted")

    def test_lists_that_do_not_fit_and_stores(self, tmp_path):
        problem, each = models(2)
        with pytest.raises(UsageError, match="1 curvatures for 2 models"):
            scored(problem, each, curvature=[GradientDot()])
        with pytest.raises(UsageError, match=r"leave out out, and call \.save"):
            scored(problem, each, out=tmp_path / "s.h5")
        with pytest.raises(UsageError, match="keep_curvature"):
            scored(problem, each, keep_curvature=True)
        with pytest.raises(UsageError, match="and one model"):
            scored(problem, each[0], curvature=[GradientDot()])
