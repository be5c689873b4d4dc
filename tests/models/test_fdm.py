"""Feature distance minimisation: the distance by loops, and one step of a whole training by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from upweight import UsageError
from upweight.models.attacks import attacked
from upweight.models.checkpoints import load_model
from upweight.models.data import load_data
from upweight.models.device import generator, seeded
from upweight.models.fdm import feature_shift
from upweight.models.pretrain import pixel_statistics, pretrain
from upweight.models.settings import DataSettings, PretrainSettings
from upweight.models.training import batch_order
from upweight.models.zoo import build


def test_shift_agrees_with_loops():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 2, 2, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for i in range(3):
        total += math.sqrt(sum(float(v) ** 2 for v in (one[i] - other[i]).flatten()))
    assert float(feature_shift(one, other)) == pytest.approx(total / math.sqrt(20), rel=1e-12)


def test_images_that_no_attack_moved_cost_nothing_and_pull_nowhere():
    features = torch.ones(2, 3, requires_grad=True)
    feature_shift(features, torch.ones(2, 3)).backward()
    assert torch.equal(features.grad, torch.zeros(2, 3))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("few") / "few.npz"
    x = rng.uniform(0, 1, (16, 28, 28)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(16) % 2, x_test=x[:4], y_test=np.arange(4) % 2)
    return str(path)


def settings(few, **changes):
    base = {
        "data": few,
        "adversarial": True,
        "fdm": 0.5,
        "fdm_k": 3,
        "epochs": 1,
        "batch_size": 16,
        "shift": 0,
        "steps": 2,
        "eval_steps": 1,
        "learning_rate": 1.0,
        "weight_decay": 0.0,
        "device": "cpu",
    }
    return PretrainSettings(**(base | changes))


def one_step(few, asked):
    """Loss and gradient of the whole network, the features taken by a hook."""
    train = load_data(DataSettings(data=few), (1, 28, 28)).train
    mean, std = pixel_statistics(train)
    with seeded("initial weights", asked.seed):
        model = build("small_resnet", num_classes=2, mean=mean, std=std)
    # the same kernels as in the training: a rectifier at rounding's distance from zero would open in one of the two only
    model = model.to(memory_format=torch.channels_last)
    (rows,) = batch_order(16, 16, asked.seed, 1)
    x, y = train.images(rows).to(memory_format=torch.channels_last), train.labels[rows]
    moved = attacked(model, x, y, asked.attack, generator("attack", asked.seed, 1))
    model.train()
    entering = []
    model.net.stage3[0].register_forward_pre_hook(lambda _module, args: entering.append(args[0]))
    logits = model(moved)
    model(x)
    shift = sum(
        torch.sqrt(sum(((a - b) ** 2).flatten())) for a, b in zip(entering[0], entering[1], strict=True)
    ) / math.sqrt(entering[0][0].numel())
    loss = functional.cross_entropy(logits, y) + asked.fdm * shift
    rate = 0.05  # the first step of the warm-up
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    moved_weights = {
        name: (p - rate * g).detach() for (name, p), g in zip(model.named_parameters(), gradients, strict=True)
    }
    return loss.item(), moved_weights


def test_one_step_agrees_with_the_whole_network_by_hand(tmp_path, few):
    asked = settings(few)
    record = pretrain(asked, tmp_path / "s.safetensors")
    loss, expected = one_step(few, asked)
    assert record["history"][0]["loss"] == pytest.approx(loss, rel=1e-5)
    after = load_model(tmp_path / "s.safetensors").model
    for name, value in after.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-4, atol=1e-5, msg=name)
    plain = pretrain(settings(few, fdm=0.0), tmp_path / "plain.safetensors")
    other = load_model(tmp_path / "plain.safetensors").model
    moved = [name for name, value in other.named_parameters() if not torch.allclose(value, expected[name], atol=1e-3)]
    assert plain["history"][0]["loss"] < 0.9 * loss  # the term is no rounding
    assert any(name.startswith("net.stem") for name in moved)


def test_stopped_and_resumed_equals_uninterrupted_and_the_recipe_is_kept(tmp_path, few):
    asked = settings(few, epochs=2, batch_size=8, learning_rate=0.05)
    whole = pretrain(asked, tmp_path / "whole.safetensors")

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        pretrain(asked, tmp_path / "s.safetensors", stop)
    assert pretrain(asked, tmp_path / "s.safetensors")["sha256"] == whole["sha256"]
    assert (whole["settings"]["fdm"], whole["settings"]["fdm_k"]) == (0.5, 3)
    assert not {"fdm", "fdm_k"} & pretrain(settings(few, fdm=0.0), tmp_path / "n.safetensors")["settings"].keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adversarial": False}, "fdm is 0.5 in a natural training, which has no attack"),
        ({"fdm": -1.0}, "fdm is -1.0"),
        ({"fdm_k": -1}, "fdm_k is -1"),
    ],
)
def test_refuses_in_one_sentence(few, changes, words):
    with pytest.raises(UsageError, match=words):
        settings(few, **changes)


def test_blocks_that_are_not_there_are_refused_before_anything_is_written(tmp_path, few):
    with pytest.raises(UsageError, match="k is 10, but this network has 9 residual blocks"):
        pretrain(settings(few, fdm_k=10), tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())
