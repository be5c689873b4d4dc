"""The derivative of a training: against re-runs with moved example weights, autograd through all steps, and its limit."""

import copy
import random

import numpy as np
import pytest
import torch
import upweight
from numpy.testing import assert_allclose, assert_array_equal
from recorded import MODELS, Trained, trained
from torch import nn
from upweight import Recording, SolveError, Unrolled, UsageError
from upweight.influence import unrolled


def score(case, recording=None, **options):
    recording = case.recording() if recording is None else recording
    options = {"parameters": recording.trained, "curvature": Unrolled(recording)} | options
    return upweight.attribute(options.pop("model", case.model), (case.X, case.y), case.queries, **options)


class TestAgainstReruns:
    """Exact to the rounding of a central difference (step 1e-4, float64), a thousandfold below the 1e-3 that is asked."""

    @pytest.mark.parametrize("name", MODELS)
    def test_one_example_more_or_less(self, name):
        case = trained(name)
        got = score(case).matrix
        for i in (0, 22):
            want = case.slope(torch.eye(case.n, dtype=torch.float64)[i]).numpy()
            assert abs(got[:, i] - want).max() < 1e-6 * abs(want).max()

    @pytest.mark.parametrize("name", MODELS)
    def test_all_examples_at_once(self, name):
        case = trained(name)
        direction = torch.linspace(-1, 1, case.n, dtype=torch.float64)
        want = case.slope(direction).numpy()
        got = score(case).matrix @ direction.numpy()
        assert abs(got - want).max() < 1e-6 * abs(want).max()

    @pytest.mark.parametrize("memory", ["1GB", 1000])
    def test_the_end_of_a_training_alone(self, memory):
        case = trained("cnn")  # 15 steps in stretches of 4, the last of 3
        direction = torch.linspace(-1, 1, case.n, dtype=torch.float64)
        want = case.slope(direction, since=8).numpy()
        got = score(case, curvature=Unrolled(case.recording(), last=2), memory=memory).matrix @ direction.numpy()
        assert abs(got - want).max() < 1e-6 * abs(want).max()

    def test_without_momentum_and_decay(self):
        case = trained()
        case.momentum = case.decay = 0.0
        case.model = case.fit()
        direction = torch.linspace(-1, 1, case.n, dtype=torch.float64)
        want = case.slope(direction).numpy()
        assert abs(score(case).matrix @ direction.numpy() - want).max() < 1e-6 * abs(want).max()

    def test_single_precision_comes_near_and_its_derivative_can_be_taken_in_double(self):
        case = trained("cnn", dtype=torch.float32)
        want = score(trained("cnn")).matrix
        assert_allclose(score(case).matrix, want, rtol=0, atol=2e-3 * abs(want).max())
        double = score(case, dtype=torch.float64)
        assert double.matrix.dtype == np.float64
        assert_allclose(double.matrix, want, rtol=0, atol=2e-3 * abs(want).max())


def test_equals_autograd_through_the_whole_training():
    """All steps in one graph, float64: nothing is shared with the adjoints but the definition."""
    case = trained("mlp", n=11, m=3, epochs=3, batch=4)
    eps = torch.ones(case.n, dtype=torch.float64, requires_grad=True)
    theta = [value.detach().clone().requires_grad_() for value in case.start.parameters()]
    velocity = [torch.zeros_like(value) for value in theta]

    def logits(theta, X):
        W1, b1, W2, b2 = theta
        return torch.tanh(X.flatten(1) @ W1.T + b1) @ W2.T + b2

    for rows, rate in zip(case.batches, case.rates, strict=True):
        losses = nn.functional.cross_entropy(logits(theta, case.X[rows]), case.y[rows], reduction="none")
        g = torch.autograd.grad((eps[rows] * losses).mean(), theta, create_graph=True)
        velocity = [case.momentum * v + gi + case.decay * t for v, gi, t in zip(velocity, g, theta, strict=True)]
        theta = [t - rate * v for t, v in zip(theta, velocity, strict=True)]
    final = nn.functional.cross_entropy(logits(theta, case.queries[0]), case.queries[1], reduction="none")
    want = torch.stack([-case.n * torch.autograd.grad(loss, eps, retain_graph=True)[0] for loss in final])
    assert_allclose(score(case).matrix, want.numpy(), rtol=0, atol=1e-11 * float(want.abs().max()))


def test_converged_convex_training_gives_the_exact_inverse_hessian():
    """Full-batch descent on softmax regression with L2: the unrolled score is the head's at damping = L2, leverage aside."""
    draw = torch.Generator().manual_seed(3)
    X, Xq = (torch.randn(count, 1, 2, 2, generator=draw, dtype=torch.float64) for count in (30, 6))
    start = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    case = Trained(
        start, X, torch.arange(30) % 3, (Xq, torch.arange(6) % 3), [torch.arange(30)] * 250, [1.0] * 250, 0.0, 0.1
    )
    want = score(case, curvature=upweight.LinearHead(damping=0.1), weight_decay=0.1).matrix
    got = score(case).matrix
    assert_allclose(got, want, rtol=0, atol=1e-7 * abs(want).max())


class TestHowItRuns:
    @pytest.mark.parametrize("name", ["mlp", "cnn"])
    def test_running_again_from_checkpoints_changes_nothing(self, name):
        case = trained(name, epochs=7)
        kept = score(case, memory="1GB")
        again = score(case, memory=1000)  # neither the steps nor every stretch's start fit
        assert_allclose(again.matrix, kept.matrix, rtol=0, atol=1e-12 * abs(kept.matrix).max())

    def test_twice_gives_the_same_bits(self):
        case = trained("cnn")
        recording = case.recording()
        want = score(case, recording).matrix
        case.model.requires_grad_(False)  # nor does it matter how the finished model arrives
        with torch.no_grad():
            assert_array_equal(score(case, recording).matrix, want)

    def test_rectifiers_and_batches_of_queries(self):
        """Queries in blocks are each what they are alone."""
        case = trained("cnn", m=7)
        together = score(case).matrix
        case.queries = tuple(part[2:3] for part in case.queries)
        assert_allclose(score(case).matrix[0], together[2], rtol=0, atol=1e-12 * abs(together).max())

    def test_predicted_label_and_train_scores(self):
        case = trained()
        scores = score(case, query_label="predicted", train_scores=True)
        y = torch.from_numpy(scores.queries.prediction)
        assert (y != case.queries[1]).any()  # else this could not fail
        case.queries = (case.queries[0], y)
        assert_allclose(scores.matrix, score(case).matrix, rtol=0, atol=1e-12)
        case.queries = (case.X, torch.from_numpy(scores.train.prediction))
        assert_allclose(scores.on_train.matrix, score(case).matrix, rtol=0, atol=1e-12)

    def test_says_how_it_was_made(self):
        scores = score(trained())
        assert scores.meta["curvature"]["name"] == "Unrolled"
        assert scores.meta["unit"] == "nats per unit weight"
        assert scores.meta["sign"].startswith("- n d loss_query / d weight_train")
        assert scores.meta["warnings"] == []  # the replay ends at the very bits, and no optimum is needed
        assert scores.spectrum is None

    def test_stopped_and_resumed(self, tmp_path, monkeypatch):
        case = trained()
        want = score(case, memory=1000).matrix
        made = []
        real = unrolled._scores

        def counted(*args):
            made.append(args[2])
            if len(made) == 3:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(unrolled, "_scores", counted)
        with pytest.raises(KeyboardInterrupt):
            score(case, memory=1000, out=tmp_path / "s.h5")
        scores = score(case, memory=1000, out=tmp_path / "s.h5")
        assert len(made) == 3 + 3  # two of five queries were kept
        assert_array_equal(np.array(scores.matrix), want)
        assert not list(tmp_path.glob("*.tiles"))

    def test_model_is_left_as_it_was_found(self):
        case = trained("cnn")
        case.model.train()
        before = {name: value.clone() for name, value in case.model.state_dict().items()}
        start = {name: value.clone() for name, value in case.start.state_dict().items()}
        stood = torch.get_rng_state()
        score(case)
        assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
        assert all(torch.equal(value, start[name]) for name, value in case.start.state_dict().items())
        assert torch.equal(stood, torch.get_rng_state())
        assert all(module.training for module in case.model.modules())


class Noise(nn.Module):
    """Draws where no seed of torch reaches."""

    def forward(self, x):
        return x * (1 + 1e-3 * random.random()) if self.training else x


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()).double())

    def forward(self, x):
        self.seen += x.detach().abs().mean()
        return x


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"batches": []}, "batches is empty"),
            ({"rates": [0.1]}, "1 rates for 15 batches"),
            ({"batches": [torch.tensor([0, 23])], "rates": 0.1}, "Batch 0 must hold positions between 0 and 22"),
            ({"batches": [[1, 1]], "rates": 0.1}, "holds an example twice"),
            ({"momentum": -0.1}, "momentum is -0.1"),
            ({"weight_decay": float("nan")}, "weight_decay is nan"),
            ({"rates": float("nan")}, "a rate is nan"),
        ],
    )
    def test_recording_that_cannot_be(self, changed, words):
        with pytest.raises(UsageError, match=words):
            trained().recording(**changed)

    def test_nothing_trained(self):
        case = trained()
        with pytest.raises(UsageError, match="No parameter of the model asks for gradients"):
            case.recording(model=copy.deepcopy(case.start).requires_grad_(False))

    def test_dropout_that_nobody_recorded(self):
        case = trained()
        with pytest.raises(UsageError, match=r"^4 draws at random in training"):
            case.recording(model=nn.Sequential(*case.start, nn.Dropout(0.5)))
        case.recording(model=nn.Sequential(*case.start, nn.Dropout(0.5).eval()))

    @pytest.mark.parametrize("changed", [{"momentum": 0.5}, {"weight_decay": 0.0}, {"rates": 0.01}])
    def test_not_the_training_that_made_the_model(self, changed):
        case = trained()
        with pytest.raises(SolveError, match=r"does not end at the weights of the model: 1\.weight is the first"):
            score(case, case.recording(**changed))

    def test_running_statistics_of_another_training(self):
        case = trained("cnn")
        case.model[1].running_var *= 2
        with pytest.raises(SolveError, match=r"does not end at the weights of the model: 1\.running_var"):
            score(case)

    def test_diverging_replay(self):
        case = trained()
        with pytest.raises(SolveError, match="diverges in part"):
            score(case, case.recording(rates=1e300))

    def test_training_that_does_not_repeat_itself(self):
        case = trained()
        start = nn.Sequential(*copy.deepcopy(case.start), Noise())
        recording = case.recording(model=start)
        with pytest.raises(SolveError, match=r"does not repeat itself: 1\.weight differs"):
            score(case, recording, model=nn.Sequential(*case.model))

    def test_buffers_that_no_derivative_passes(self):
        case = trained()
        start = nn.Sequential(*copy.deepcopy(case.start), Counter())
        with pytest.raises(SolveError, match=r"The buffer 4\.seen changes in training"):
            score(case, case.recording(model=start), model=nn.Sequential(*case.model, Counter()))

    def test_other_train_set_labels_parameters_or_loss(self):
        case = trained()
        recording = case.recording()
        X, y = case.X, case.y
        case.y = y.flip(0)
        with pytest.raises(UsageError, match="The train set is not the one that was recorded"):
            score(case, recording)
        case.X, case.y = X[torch.arange(case.n - 1, -1, -1) % 23], y
        with pytest.raises(UsageError, match="The train images are not those that were recorded"):
            score(case, recording)
        case.X = X
        with pytest.raises(UsageError, match=r"moved 1\.weight, 1\.bias, 3\.weight, 3\.bias, and other parameters"):
            score(case, recording, parameters="head")
        with pytest.raises(UsageError, match="leave `loss` out"):
            score(case, recording, loss=lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"))
        with pytest.raises(UsageError, match="is not both in the model and in the recording"):
            score(case, recording, model=nn.Sequential(nn.Identity(), *case.model), parameters="all")

    def test_last(self):
        recording = trained().recording()
        with pytest.raises(UsageError, match="last must be at least 1"):
            Unrolled(recording, last=0)
        told = [Unrolled(recording, last=last).settings() for last in (None, 2)]
        assert told[0] != told[1]

    @pytest.mark.untyped
    def test_no_recording(self):
        for wrong in (3, Recording):
            with pytest.raises(UsageError, match=r"give an upweight\.Recording"):
                Unrolled(wrong)
