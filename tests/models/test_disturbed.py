"""Fine-tuning on attacked and on augmented images: against a loop over the whole network, and what it is good for."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional
from upweight.models.accuracy import natural_accuracy
from upweight.models.attacks import random_start
from upweight.models.augment import augment
from upweight.models.checkpoints import save_model
from upweight.models.data import choose_subset, load_data
from upweight.models.device import generator
from upweight.models.finetune import fine_tune, network_to_train
from upweight.models.robustness import measure_run
from upweight.models.settings import DataSettings, FineTuneSettings, RobustnessSettings
from upweight.models.training import batch_order
from upweight.models.transfer import resolve_parameters, with_new_head
from upweight.models.tuning import Inputs, Tuning
from upweight.models.zoo import build

CPU = torch.device("cpu")
CHANGED = {"shift": 2, "flip": True, "rotate": 12.0}
ATTACKED = {"adversarial": True, "eps": 1.5, "steps": 2}


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSettings(data=str(tiny.data())), (1, 28, 28))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.lived_source(tmp_path_factory.mktemp("source"))


def quick(**changes):
    base = {"k": 1, "n": 16, "epochs": 3, "seed": 1, "batch_size": 8, "learning_rate": 0.02, "device": "cpu"}
    return FineTuneSettings(**(base | changes))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, source, digits):
    """The run of the same settings on the images as they are."""
    return fine_tune(source, digits, quick(), tmp_path_factory.mktemp("plain"))


def weights(run):
    return run.model.model.state_dict()


def attacked_by_hand(model, x, y, settings, draw):
    """L2 steps against the network in evaluation mode, of one image after another but for the random starts."""
    model.eval()
    start = (x + random_start(x, settings.attack, draw)).clamp(0, 1)
    moved = []
    for image, label, z in zip(x, y, start, strict=True):
        for _ in range(settings.steps):
            z = z.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(functional.cross_entropy(model(z[None]), label[None]), z)
            z = z.detach() + (settings.step_size or 2.5 * settings.eps / settings.steps) * grad / grad.norm()
            z = (image + (z - image) * min(settings.eps / float((z - image).norm()), 1.0)).clamp(0, 1)
        moved.append(z)
    return torch.stack(moved)


def by_hand(source, digits, settings, follow):
    """Autograd over the whole network, every image anew."""
    model = with_new_head(source.model, 10, settings.seed)
    trained = [model.get_parameter(name) for name in resolve_parameters(model, f"blocks:{settings.k}")]
    train = digits.train.subset(choose_subset(digits.train.labels, settings.n, settings.seed))
    velocity = [torch.zeros_like(p) for p in trained]
    for epoch in range(1, settings.epochs + 1):
        draw, attack_draw = (generator(word, settings.seed, epoch) for word in ("augmentation", "attack"))
        for rows in batch_order(settings.n, settings.batch_size, settings.seed, epoch):
            x, y = train.images(rows), train.labels[rows]
            x = augment(x, draw, shift=settings.shift, flip=settings.flip, rotate=settings.rotate)
            if settings.adversarial:
                x = attacked_by_hand(model, x, y, settings, attack_draw)
            for name, module in model.named_modules():
                module.training = isinstance(module, nn.BatchNorm2d) and name.startswith(follow)
            gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), trained)
            with torch.no_grad():
                for p, v, g in zip(trained, velocity, gradients, strict=True):
                    v.mul_(settings.momentum).add_(g + settings.weight_decay * p)
                    p.sub_(settings.learning_rate * 0.1 ** (epoch - 1) * v)
    return model.eval().state_dict()


@pytest.mark.parametrize(
    ("changes", "follow"),
    [
        (CHANGED, "net.stage3.2"),
        (ATTACKED, "net.stage3.2"),
        (CHANGED | ATTACKED | {"step_size": 0.6, "cache_mb": 0}, "net.stage3.2"),
        (CHANGED | ATTACKED | {"bn_statistics": "all", "n": 32, "batch_size": 16}, "net"),
    ],
    ids=["changed", "attacked", "both", "moving"],
)
def test_training_agrees_with_a_loop_over_the_whole_network(tmp_path, source, digits, plain, changes, follow):
    settings = quick(**changes)
    run = fine_tune(source, digits, settings, tmp_path / "run")
    expected = by_hand(source, digits, settings, follow)
    for name, value in weights(run).items():  # float32, six steps; other batch sizes round otherwise
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=5e-4, msg=name)
    odd = [
        name
        for name, value in weights(plain).items()
        if not torch.allclose(value, expected[name], rtol=1e-2, atol=5e-3)
    ]
    assert any(name.startswith("net.stage3.2") for name in odd)  # or this would pass with the term dropped
    # accuracies are of the images as they are
    assert run.info["accuracy"] == {
        "train": pytest.approx(natural_accuracy(run.model.model, run.train, CPU), abs=1e-9),
        "test": pytest.approx(natural_accuracy(run.model.model, run.test, CPU), abs=1e-9),
    }


def tuning(source, digits, settings):
    model, parts = network_to_train(source.model, 10, settings)
    train = digits.train.subset(choose_subset(digits.train.labels, settings.n, settings.seed))
    return model, train, Tuning(parts, Inputs(parts, train, digits.test, settings, CPU), settings)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_images_met_in_training_are_moved_within_the_ball_and_up_the_loss(source, digits, norm):
    settings = quick(adversarial=True, norm=norm, eps=0.5 if norm == "l2" else 0.05)
    model, train, tuned = tuning(source, digits, settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = list(tuned._batches(1))
    for rows, (x, y) in zip(batch_order(16, 8, settings.seed, 1), seen, strict=True):
        plain = train.images(rows)
        assert torch.equal(y, train.labels[rows])
        far = (x - plain).flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf)
        assert (far > 0.2 * settings.eps).all() and (far <= settings.eps * (1 + 1e-5)).all()
        assert x.min() >= 0 and x.max() <= 1
        with torch.no_grad():
            assert functional.cross_entropy(model.eval()(x), y) > functional.cross_entropy(model(plain), y) + 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again, other = (list(tuned._batches(epoch)) for epoch in (1, 2))
    assert torch.equal(again[0][0], seen[0][0]) and not torch.equal(other[0][0], seen[0][0])


def test_frozen_part_stays_to_the_bit(tmp_path, source, digits):
    run = fine_tune(source, digits, quick(**CHANGED, **ATTACKED), tmp_path)
    before = source.model.state_dict()
    for name, value in weights(run).items():
        if not name.startswith("net.head"):
            assert torch.equal(value, before[name]) != name.startswith("net.stage3.2"), name


def test_attack_in_training_raises_robust_accuracy(tmp_path):
    """Bars, upright or lying, among noise."""
    rng = np.random.default_rng(0)
    y = np.arange(104) % 2
    x = rng.uniform(0, 0.5, (104, 14, 14))
    for image, label in zip(x, y, strict=True):
        at = rng.integers(2, 10)
        (image.T if label else image)[at : at + 3] = 0.9
    path = tmp_path / "bars.npz"
    np.savez(path, x=x[:64].astype(np.float32), y=y[:64], x_test=x[64:].astype(np.float32), y_test=y[64:])
    torch.manual_seed(0)
    model = build("small_resnet", num_classes=2, mean=(0.4,), std=(0.3,), input_shape=(1, 14, 14))
    save_model(tmp_path / "born.safetensors", model, {})
    data = load_data(DataSettings(data=str(path)), (1, 14, 14))
    rates = []
    for adversarial in (False, True):
        changes = {"adversarial": True, "eps": 1.5, "steps": 2} if adversarial else {}
        settings = quick(k="all", n=None, epochs=6, batch_size=16, learning_rate=0.05, **changes)
        run = fine_tune(tmp_path / "born.safetensors", data, settings, tmp_path / f"{adversarial}")
        rates.append(measure_run(run, RobustnessSettings(eps=1.5, steps=5, device="cpu"))["pgd"])
    assert rates[1] > rates[0] + 0.2


def test_attribution_says_that_gradients_are_taken_at_other_images(tmp_path):
    told = ("fine-tune", "--data", tiny.data(), "--n", 20, "--epochs", 1, "--k", 0, "--device", "cpu")
    said = {}
    cases = {
        "plain": (),
        "changed": ("--shift", 1, "--rotate", 5),
        "attacked": ("--adversarial", "--eps", 0.5, "--steps", 1, "--flip"),
    }
    for name, words in cases.items():
        run = tmp_path / name
        tiny.done(*told, *words, "--out", run)
        said[name] = tiny.strict_json(tiny.done("attribute", run, "--json"))["main"]["warnings"]
    tail = (
        "and the gradients are taken at the images as they are: the scores belong to a loss that the training did not "
        "minimise."
    )
    assert not any(tail in text for text in said["plain"])
    assert f"The training images were shifted and turned, {tail}" in said["changed"]
    assert f"The training images were attacked and mirrored, {tail}" in said["attacked"]
    assert tail in tiny.done("attribute", tmp_path / "attacked")
