"""Training again on part of a train set: the run itself to the bit, part of it by hand, and what cannot be repeated."""

import functools
import json
import pickle

import numpy as np
import pytest
import small_runs
import torch
from small_runs import N, recipe
from torch import nn
from torch.nn import functional
from upweight import UsageError
from upweight.models.checkpoints import load_model, save_model
from upweight.models.determinism import require_deterministic, unsteady_layer
from upweight.models.device import derive_seed
from upweight.models.errors import CheckpointError, DataError, NonDeterministicError, TrainingError
from upweight.models.finetune import fine_tune, network_to_train
from upweight.models.refit import OwnTrainer, equal_inputs, refit_seed
from upweight.models.run_trainer import RunTrainer
from upweight.models.training import batch_order


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_runs.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return small_runs.target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def make(source, target, tmp_path_factory):
    @functools.cache
    def made(words):
        folder = tmp_path_factory.mktemp("run")
        fine_tune(source, target, recipe(**dict(words)), folder)
        return folder

    return lambda **changes: made(tuple(changes.items()))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


EVERY = np.ones(N, dtype=bool)
RECIPES = [
    {},
    {"k": 3, "cache_mb": 0},
    {"k": 2, "lwf": 0.1},
    {"k": 2, "lwf": 0.1, "lwf_distance": "l2", "head_first": 0.3},
    {"neft": 0.6},
    {"fresh": True},
    {"hidden": 1, "head_batch_norm": True, "head_dropout": 0.3},
    {"bn_statistics": "all"},
    {"bn_statistics": "extractor", "k": 0},
    {"bn_affine": False, "counting": "cartl", "k": 3},
    {"shift": 1, "flip": True, "rotate": 9.0},
    {"adversarial": True, "eps": 0.5, "steps": 1},
    {"k": 0, "hidden": 1},
]


@pytest.mark.parametrize(
    "changes", RECIPES, ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()) or "plain"
)
def test_with_all_images_and_its_seed_a_refit_is_the_run_to_the_bit(make, changes):
    trainer = RunTrainer(make(**changes))
    assert not trainer.exact
    model = trainer.fit(EVERY, trainer.train_labels, trainer.seed)
    assert same(model.state_dict(), trainer.run.model.model.state_dict())
    again = trainer.fit(EVERY, trainer.train_labels, trainer.seed)  # nothing of the first fit is left in the second
    assert same(model.state_dict(), again.state_dict())
    assert not same(model.state_dict(), trainer.fit(EVERY, trainer.train_labels, 4).state_dict())
    part = trainer.fit(np.arange(N) != 2, trainer.train_labels, trainer.seed)
    assert not same(model.state_dict(), part.state_dict())
    with torch.no_grad():
        expected = trainer.network(part)(trainer.run.test.images(slice(None))).double().numpy()
    np.testing.assert_allclose(trainer.logits(part), expected, rtol=1e-5, atol=1e-6)


def test_the_order_is_that_of_the_whole_with_gaps():
    kept = torch.tensor([i % 3 > 0 for i in range(20)])
    for epoch in (1, 2):
        whole = torch.cat(list(batch_order(20, 6, 5, epoch))).tolist()
        part = list(batch_order(20, 6, 5, epoch, kept))
        assert torch.cat(part).tolist() == [row for row in whole if row % 3 > 0]
        assert [len(rows) for rows in part] == [6, 7], "13 images: the one left over joins the batch before it"


def test_part_of_the_images_with_other_labels_is_trained_on_as_by_hand(make, source, target):
    trainer = RunTrainer(make())
    kept = np.arange(N) % 3 > 0  # nine of them: a batch of 5 and one of 4
    labels = (trainer.train_labels + (np.arange(N) < 4)) % 2
    got = trainer.fit(kept, labels, 8).state_dict()

    settings = recipe(seed=8)
    model, parts = network_to_train(source.model, 2, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0, momentum=settings.momentum, weight_decay=settings.weight_decay)
    x, y = trainer.run.train.images(slice(None)), torch.from_numpy(labels)
    for epoch in (1, 2):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.1 ** (3 * (epoch - 1) // 2)
        draw = torch.Generator().manual_seed(derive_seed("batch order", 8, epoch))
        order = torch.tensor([row for row in torch.randperm(N, generator=draw).tolist() if kept[row]])
        model.eval()
        parts.trained.train()
        for rows in order.split(5):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        # float32, and the frozen part was run over other batches
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_linear_head_is_fitted_to_its_optimum(make):
    trainer = RunTrainer(make(k=0, weight_decay=1e-2))
    assert trainer.exact and trainer.identity()["refit"] == "convex to 1e-08"
    kept = np.arange(N) != 5
    head = trainer.fit(kept, trainer.train_labels, 1)
    assert same(head.state_dict(), trainer.fit(kept, trainer.train_labels, 2).state_dict()), "the seed does not matter"
    network = trainer.network(head)
    x, y = trainer.run.train.images(slice(None))[kept], trainer.run.train.labels[kept]
    network.double()
    network.requires_grad_(False)
    weights = [network.get_parameter(f"net.fc.{name}").requires_grad_() for name in ("weight", "bias")]
    loss = functional.cross_entropy(network(x.double()), y) + 0.5e-2 * sum(w.square().sum() for w in weights)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    assert gradient.norm() < 1e-6, "float32 features and weights of the network"
    with torch.no_grad():
        z = network(trainer.run.test.images(slice(None)).double())
    np.testing.assert_allclose(trainer.logits(head), z.numpy(), atol=1e-5)
    assert not RunTrainer(make(k=0, weight_decay=1e-2), recipe=True).exact
    assert not RunTrainer(make(k=0, weight_decay=0.0)).exact, "without a decay there may be no optimum"


def test_the_recipe_of_a_linear_head_can_be_asked_for(make):
    trainer = RunTrainer(make(k=0, weight_decay=1e-2), recipe=True)
    model = trainer.fit(EVERY, trainer.train_labels, trainer.seed)
    assert same(model.state_dict(), trainer.run.model.model.state_dict())


def test_its_identity_tells_runs_apart_and_travels(make):
    one, other = RunTrainer(make()), RunTrainer(make(k=3, cache_mb=0))
    assert one.identity() != other.identity()
    assert json.loads(json.dumps(one.identity())) == one.identity()
    copied = pickle.loads(pickle.dumps(one))
    assert len(pickle.dumps(one)) < 2000, "the folder's name travels, not the images"
    assert copied.identity() == one.identity() and copied.seed == 3
    assert RunTrainer(one.run).identity() == one.identity()


def test_a_source_that_changed_is_refused(source, target, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_model(path, source.model, {})
    fine_tune(load_model(path), target, recipe(), tmp_path / "run")
    for change, words in (
        (lambda: save_model(path, source.model, {"more": 1}), "other weights"),
        (path.unlink, "not there"),
    ):
        change()
        trainer = RunTrainer(tmp_path / "run")
        with pytest.raises(CheckpointError, match=words):
            trainer.fit(EVERY, trainer.train_labels, 3)


def test_test_images_that_are_train_images_are_found(source, tmp_path):
    fine_tune(source, small_runs.target(tmp_path, shared=[(4, 9)]), recipe(), tmp_path / "run")
    assert RunTrainer(tmp_path / "run").shared() == [(4, 9)]


def test_a_fit_that_diverges_says_so(make):
    trainer = RunTrainer(make(k=3, cache_mb=0))
    trainer.settings = recipe(k=3, learning_rate=1e30)
    with pytest.raises(TrainingError, match="diverged"):
        trainer.fit(EVERY, trainer.train_labels, 3)


# ---- a function of the user's ----------------------------------------------------------------------------------------------

X, Y = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 3))).float(), torch.arange(12) % 2


def train(kept, labels, seed, make=lambda: nn.Linear(3, 2), order=None):
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        rows = np.flatnonzero(kept)
        rows = rows if order is None else order(rows)
        optimizer.zero_grad()
        functional.cross_entropy(model(X[rows]), torch.from_numpy(labels[rows])).backward()
        optimizer.step()
    return model


def test_an_own_trainer_gives_what_the_function_gives():
    trainer = OwnTrainer(train, (X, Y), (X[:5] + 1, Y[:5]))
    kept = np.arange(12) != 3
    model = trainer.fit(kept, trainer.train_labels, 7)
    assert same(model.state_dict(), train(kept, Y.numpy(), 7).state_dict()) and not model.training
    with torch.no_grad():
        np.testing.assert_array_equal(trainer.logits(model), model(X[:5] + 1).double().numpy())
    items = [(X[i], int(Y[i])) for i in range(12)]
    listed = OwnTrainer(train, items, [(x + 1, y) for x, y in items[:5]])
    np.testing.assert_array_equal(listed.logits(model), trainer.logits(model))
    assert listed.identity() == trainer.identity() and listed.query_labels.tolist() == [0, 1, 0, 1, 0]
    itself = OwnTrainer(train, (X, Y))
    assert itself.shared() == [] and len(itself.logits(model)) == 12


def test_an_identity_follows_data_settings_and_the_text_of_the_function():
    trainers = [
        OwnTrainer(train, (X, Y)),
        OwnTrainer(train, (X, Y), (X[:3], Y[:3])),
        OwnTrainer(train, (X, 1 - Y)),
        OwnTrainer(train, (X + 1e-6, Y)),
        OwnTrainer(train, (X, Y), settings={"epochs": 5}),
        OwnTrainer(train, (X, Y), exact=True),
        OwnTrainer(functools.partial(train, order=None), (X, Y)),
        OwnTrainer(lambda kept, labels, seed: train(kept, labels, seed), (X, Y)),
    ]
    names = [json.dumps(trainer.identity(), sort_keys=True) for trainer in trainers]
    assert len({*names}) == len(names)
    assert names[0] == json.dumps(OwnTrainer(train, (X.clone(), Y.clone())).identity(), sort_keys=True)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"fit": 3}, UsageError, "fit is a int"),
        ({"fit": lambda *_: 3}, UsageError, "fit gave a int"),
        ({"train": 5}, DataError, "train is no data set"),
        ({"train": (X, Y[:4])}, DataError, "of one length"),
        ({"train": (X, Y.float())}, DataError, "whole numbers"),
    ],
)
def test_what_is_no_trainer_is_refused(words, error, message):
    with pytest.raises(error, match=message):
        trainer = OwnTrainer(**({"fit": train, "train": (X, Y)} | words))
        trainer.fit(np.ones(12, dtype=bool), trainer.train_labels, 0)


def test_weights_that_are_not_finite_have_diverged():
    def broken(kept, labels, seed):
        model = nn.Linear(3, 2)
        model.bias.data[1] = float("inf")
        return model

    with pytest.raises(TrainingError, match="bias is no longer finite"):
        OwnTrainer(broken, (X, Y)).fit(np.ones(12, dtype=bool), Y.numpy(), 0)


def test_seeds_are_of_31_bits_and_differ():
    seeds = {refit_seed(0, part, repeat) for part in range(50) for repeat in range(3)}
    assert len(seeds) == 150 and max(seeds) < 2**31


def test_equal_inputs_are_told_by_the_first_that_equals():
    assert equal_inputs(["a", "b", "a"], ["c", "a", "b"]) == [(1, 0), (2, 1)]


# ---- what cannot be repeated -----------------------------------------------------------------------------------------------


class Noise(nn.Module):
    """Draws from a generator that no seed reaches."""

    def forward(self, x):
        return x + float(np.random.default_rng().normal())


class Shaken(torch.autograd.Function):
    """The same output every time, and another gradient."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * (1 + float(np.random.default_rng().normal()))


class Trembling(nn.Module):
    def forward(self, x):
        return Shaken.apply(x)


def noisy():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), Noise(), nn.Linear(4, 2))


def trembling():
    return nn.Sequential(nn.Linear(3, 4), Trembling(), nn.Linear(4, 2))


def dropping():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def unseeded(kept, labels, seed):
    state = torch.get_rng_state()
    model = train(kept, labels, seed)
    torch.set_rng_state(state)
    with torch.no_grad():
        model.bias.add_(torch.randn(2))
    return model


def by_numpy(kept, labels, seed):
    return train(kept, labels, seed, order=np.random.permutation)


def by_its_own(kept, labels, seed):
    return train(kept, labels, seed, order=np.random.default_rng().permutation)


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        (functools.partial(train, make=noisy), r"first in 0\.weight: the layer 2 \(Noise\) gives different outputs"),
        (functools.partial(train, make=trembling), r"the layer 1 \(Trembling\) gives different gradients"),
        (unseeded, r"first in bias: it draws from the global generator of torch, .*torch\.manual_seed\(seed\)"),
        (by_numpy, r"the global generator of numpy, .* np\.random\.seed\(seed\)"),
        (by_its_own, r"no layer is to blame, .* a generator of its own"),
    ],
)
def test_training_that_cannot_be_repeated_is_refused_with_what_is_at_fault(fit, words):
    trainer = OwnTrainer(fit, (X, Y))
    # batches in another order make other sums only where there is more than one: here the rows' order rounds otherwise
    with pytest.raises(NonDeterministicError, match=words):
        for seed in range(20):
            require_deterministic(trainer, np.ones(12, dtype=bool), Y.numpy(), seed)


@pytest.mark.parametrize("make_one", [dropping, lambda: nn.Linear(3, 2)])
def test_what_can_be_repeated_passes(make_one):
    fit = functools.partial(train, make=make_one)
    require_deterministic(OwnTrainer(fit, (X, Y)), np.ones(12, dtype=bool), Y.numpy(), 0)


def test_looking_for_the_layer_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = dropping()
    model[1].eval()
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    assert unsteady_layer(model, X) is None
    assert same(model.state_dict(), before) and [m.training for m in model.modules()] == modes
    assert all(not module._forward_hooks for module in model.modules())


def test_a_run_with_a_layer_that_trembles_is_refused(make, monkeypatch):
    trainer = RunTrainer(make())
    require_deterministic(trainer, EVERY, trainer.train_labels, 3)
    own = network_to_train

    def disturbed(*words):
        model, parts = own(*words)
        block = parts.trained[0]
        block.register_forward_hook(lambda _m, _i, out: out + float(np.random.default_rng().normal()) * 1e-3)
        return model, parts

    monkeypatch.setattr("upweight.models.run_trainer.network_to_train", disturbed)
    with pytest.raises(NonDeterministicError, match=r"first in net\.block3"):
        require_deterministic(RunTrainer(make()), EVERY, trainer.train_labels, 3)
