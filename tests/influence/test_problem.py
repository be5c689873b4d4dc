"""Models and data that do not fit each other: one sentence each, with what was found and where."""

import numpy as np
import pytest
import torch
from cases import BY_NAME
from methods import assert_scores
from torch import nn
from upweight import (
    DataError,
    GradientDot,
    Hessian,
    LinearHead,
    ShapeError,
    SolveError,
    UpweightError,
    UsageError,
    attribute,
)


@pytest.fixture
def problem():
    return BY_NAME["head"].build()


class TestLabels:
    @pytest.mark.parametrize("label", [4, -1, 1000])
    @pytest.mark.parametrize("side", ["train", "queries"])
    def test_outside_the_classes(self, problem, side, label):
        sides = {"train": problem.train, "queries": problem.queries}
        X, y = sides[side]
        y = y.clone()
        y[3] = label
        sides[side] = (X, y)
        with pytest.raises((ShapeError, DataError), match=rf"[Ee]xample 3 of {side} has label {label}.*4 classes"):
            attribute(problem.model, **sides)

    def test_that_are_not_whole_numbers(self, problem):
        X, y = problem.train
        with pytest.raises((ShapeError, DataError), match="labels of train must be whole numbers"):
            attribute(problem.model, (X, y.double()))

    def test_one_hot(self, problem):
        X, y = problem.train
        with pytest.raises((ShapeError, DataError), match="labels of train"):
            attribute(problem.model, (X, nn.functional.one_hot(y)))

    def test_int32_labels_are_fine(self, problem):
        X, y = problem.train
        got = attribute(problem.model, (X, y.int()), problem.queries).matrix
        assert_scores(got, attribute(problem.model, problem.train, problem.queries).matrix, 1e-9)


class TestInputs:
    def test_fewer_labels_than_inputs(self, problem):
        X, y = problem.train
        with pytest.raises(ShapeError, match="train tensors hold 40 inputs and 39 labels"):
            attribute(problem.model, (X, y[:-1]))

    @pytest.mark.parametrize("empty", [(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)), []])
    def test_empty(self, problem, empty):
        with pytest.raises((ShapeError, DataError), match="train is empty"):
            attribute(problem.model, empty)
        with pytest.raises((ShapeError, DataError), match="queries is empty"):
            attribute(problem.model, problem.train, empty)

    @pytest.mark.untyped
    def test_neither_dataset_nor_tensors(self, problem):
        with pytest.raises(UpweightError, match="train is a int"):
            attribute(problem.model, 7)

    def test_items_that_are_no_pairs(self, problem):
        with pytest.raises(UpweightError, match=r"not a pair \(x, y\)"):
            attribute(problem.model, [torch.zeros(5), torch.zeros(5)] * 3)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("side", ["train", "queries"])
    def test_nan_or_infinity(self, problem, side, bad):
        sides = {"train": problem.train, "queries": problem.queries}
        X = sides[side][0].clone()
        X[2, 1] = bad
        sides[side] = (X, sides[side][1])
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).double()  # tanh would hide infinity
        with pytest.raises((SolveError, DataError), match=rf"example 2 of {side}.*NaN or infinite"):
            attribute(model, **sides)

    @pytest.mark.parametrize("side", ["train", "queries"])
    def test_another_width_than_the_models(self, problem, side):
        sides = {"train": problem.train, "queries": problem.queries}
        sides[side] = (torch.zeros(len(sides[side][1]), 9, dtype=torch.float64), sides[side][1])
        with pytest.raises(UpweightError, match=side):
            attribute(problem.model, **sides)


class TestModel:
    def test_that_is_no_module(self, problem):
        with pytest.raises(UpweightError, match="Module"):
            attribute(lambda x: x, problem.train)

    @pytest.mark.parametrize(
        ("tail", "found"),
        [
            (nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), r"\[\d+\]"),
            (nn.Linear(6, 1), r"\[\d+, 1\]"),
            (nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4))), r"\[\d+, 2, 4\]"),
        ],
        ids=["vector", "one-class", "sequence"],
    )
    @pytest.mark.parametrize("curvature", [None, Hessian(), GradientDot()], ids=["default", "Hessian", "GradientDot"])
    def test_whose_output_is_no_row_of_logits(self, problem, tail, found, curvature):
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), tail).double()
        with pytest.raises(ShapeError, match=rf"{found}.*logits \[b, C\]"):
            attribute(model, problem.train, curvature=curvature)

    def test_whose_output_is_no_tensor(self, problem):
        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(5, 4).double()

            def forward(self, x):
                return {"logits": self.head(x)}

        with pytest.raises(ShapeError, match=r"dict.*logits \[b, C\]"):
            attribute(Pair(), problem.train)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("name", ["0.weight", "2.bias"])
    def test_with_nan_or_infinite_weights(self, problem, name, bad):
        with torch.no_grad():
            dict(problem.model.named_parameters())[name].view(-1)[0] = bad
        with pytest.raises(UpweightError, match=rf"{name}.*NaN or infinite"):
            attribute(problem.model, problem.train)

    def test_without_a_linear_layer_has_no_head(self, problem):
        model = nn.Sequential(nn.Conv1d(1, 4, 5), nn.Flatten()).double()
        X, y = problem.train
        with pytest.raises(UsageError, match=r"linear|Linear"):
            attribute(model, (X[:, None], y))
        scores = attribute(model, (X[:, None], y), parameters="all", curvature=GradientDot())
        assert scores.matrix.shape == (40, 40) and scores.train.features is None

    def test_whose_last_linear_layer_does_not_give_the_logits(self, problem):
        class Scaled(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x) / 2

        with pytest.raises(UpweightError, match=r"last linear layer 'inner\.2'"):
            attribute(Scaled(problem.model), problem.train, curvature=LinearHead())

    def test_that_gives_probabilities_instead_of_logits(self, problem):
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Softmax(1)).double()
        with pytest.raises(UpweightError, match="last linear layer '2'"):
            attribute(model, problem.train, curvature=LinearHead())

    def test_in_half_precision_is_computed_in_float32(self, problem):
        half = problem.to(torch.bfloat16)
        got = attribute(half.model, half.train, half.queries, curvature=LinearHead(damping=1e-2)).matrix
        assert got.dtype == np.float32
        single = half.to(torch.float32)
        want = attribute(single.model, single.train, single.queries, curvature=LinearHead(damping=1e-2)).matrix
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * abs(want).max())


class TestParameters:
    @pytest.mark.parametrize("unknown", ["3.weight", "body", ("2.weight", "2.scale")])
    def test_unknown_names(self, problem, unknown):
        with pytest.raises(UsageError, match=r"3\.weight|body|2\.scale"):
            attribute(problem.model, problem.train, parameters=unknown)

    def test_none_at_all(self, problem):
        with pytest.raises(UsageError):
            attribute(problem.model, problem.train, parameters=())

    @pytest.mark.parametrize(
        "parameters", ["all", ("0.weight",), ("0.bias", "2.weight", "2.bias"), ("0.weight", "2.weight")]
    )
    def test_closed_form_takes_the_head_and_nothing_else(self, problem, parameters):
        with pytest.raises(UsageError, match=r"LinearHead.*Hessian\(\)"):
            attribute(problem.model, problem.train, parameters=parameters, curvature=LinearHead())

    @pytest.mark.parametrize("parameters", [("2.weight", "2.bias"), ("2.bias", "2.weight"), ("2",), "2"])
    def test_the_head_by_name_is_the_head(self, problem, parameters):
        got = attribute(problem.model, problem.train, problem.queries, parameters=parameters)
        assert got.meta["curvature"]["name"] == "LinearHead"
        assert_scores(got.matrix, attribute(problem.model, problem.train, problem.queries).matrix, 1e-9)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            pytest.param({"query_label": "guessed"}, "query_label", marks=pytest.mark.untyped),
            ({"batch_size": 0}, "batch_size"),
            ({"batch_size": -5}, "batch_size"),
            ({"weight_decay": -1e-3}, "weight_decay"),
            ({"weight_decay": np.nan}, "weight_decay"),
            ({"device": "tpu"}, "tpu"),
            ({"dtype": torch.float16}, "dtype"),
            ({"dtype": torch.int64}, "dtype"),
            ({"curvature": LinearHead}, "curvature"),
            ({"curvature": "hessian"}, "curvature"),
            ({"parameters": "blocks:1"}, "blocks"),
        ],
    )
    def test_that_make_no_sense(self, problem, options, words):
        with pytest.raises(UsageError, match=words):
            attribute(problem.model, problem.train, **options)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_a_gpu_that_is_not_there(self, problem):
        with pytest.raises(UsageError, match="cuda"):
            attribute(problem.model, problem.train, device="cuda")

    @pytest.mark.parametrize(
        ("option", "bad"), [("damping", -1e-3), ("damping", np.nan), ("rcond", -1.0), ("rcond", np.inf)]
    )
    def test_impossible_settings_of_the_head_are_refused_at_birth(self, option, bad):
        with pytest.raises(UsageError, match=option):
            LinearHead(**{option: bad})


def test_a_gpu_computes_in_full_precision_and_gets_its_own_back():
    """Convolutions use tf32 by default, and a training script may have asked for it everywhere."""
    from upweight.influence.problem import evaluating

    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        with pytest.raises(ZeroDivisionError), evaluating(nn.Linear(2, 2)):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
