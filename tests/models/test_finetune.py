"""Fine-tuning: what moves, what stays, and that it can be repeated, stopped and resumed."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from upweight import UsageError
from upweight.models.activations import Activations
from upweight.models.checkpoints import load_model, save_model
from upweight.models.data import choose_subset, load_data
from upweight.models.errors import CheckpointError, DataError, RunMismatch, TrainingError
from upweight.models.finetune import fine_tune
from upweight.models.runs import load_run, read_run
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.models.training import batch_order
from upweight.models.transfer import resolve_parameters, split, with_new_head
from upweight.models.tuning import step_rate
from upweight.models.zoo import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSettings(), (1, 28, 28))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A source whose batch-norm statistics are not those it was born with."""
    torch.manual_seed(0)
    model = build("small_resnet", num_classes=4, mean=(0.3,), std=(0.35,))
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 1, 28, 28))
    path = tmp_path_factory.mktemp("source") / "mine.safetensors"
    save_model(path, model, {"accuracy": {"natural": 0.25}, "history": [{"epoch": 1, "loss": 2.0}]})
    return load_model(path)


def quick(**changes):
    return FineTuneSettings(**({"k": 1, "n": 40, "epochs": 3, "seed": 1, "batch_size": 16, "device": "cpu"} | changes))


def weights(run):
    return run.model.model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("k", [0, 1, 3, 9])
def test_frozen_part_stays_to_the_bit_and_the_trained_part_moves(tmp_path, source, digits, k):
    run = fine_tune(source, digits, quick(k=k, epochs=2), tmp_path)
    before, after = source.model.state_dict(), weights(run)
    trained = set(split(run.model.model, k).parameters)
    stage = {0: "net.head", 1: "net.stage3.2", 3: "net.stage3", 9: "net.stage"}[k]
    for name, value in after.items():
        if name in trained:
            assert name.startswith((stage, "net.head"))
            assert name.startswith("net.head") or not torch.equal(value, before[name]), name
        elif not name.startswith(stage):
            assert torch.equal(value, before[name]), name  # batch-norm statistics of frozen blocks among them
    if k:  # the statistics of trained blocks follow the target
        assert not torch.equal(after["net.stage3.2.bn2.running_mean"], before["net.stage3.2.bn2.running_mean"])
        assert after["net.stage3.2.bn2.num_batches_tracked"] == before["net.stage3.2.bn2.num_batches_tracked"] + 6


def test_source_is_left_as_it_was(tmp_path, source, digits):
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    fine_tune(source, digits, quick(k=9, epochs=1), tmp_path)
    assert same(source.model.state_dict(), before)
    assert all(p.requires_grad for p in source.model.parameters())


def test_same_seed_same_bits_and_another_seed_other_ones(tmp_path, source, digits):
    runs = [
        fine_tune(source, digits, quick(seed=seed), tmp_path / name) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))
    assert runs[0].info["model_sha256"] == runs[1].info["model_sha256"]


class Stop(Exception):
    pass


def stop_at(epoch):
    def progress(stage, done, total):
        if stage == "fine-tune" and done == epoch:
            raise Stop

    return progress


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, source, digits):
    whole = fine_tune(source, digits, quick(), tmp_path / "whole")
    for epoch in (1, 3):
        run_dir = tmp_path / str(epoch)
        with pytest.raises(Stop):
            fine_tune(source, digits, quick(), run_dir, stop_at(epoch))
        with pytest.raises(CheckpointError, match="fine-tuning was stopped; start it again"):
            read_run(run_dir)
        told = []
        resumed = fine_tune(source, digits, quick(), run_dir, lambda *what, told=told: told.append(what))
        epochs = [what for what in told if what[0] == "fine-tune"]
        assert epochs == [("fine-tune", done, 3) for done in range(epoch, 4)]
        assert ("frozen blocks, test", 797, 797) in told
        assert same(weights(resumed), weights(whole))
        assert resumed.info["history"] == whole.info["history"]
        assert sorted(p.name for p in run_dir.iterdir()) == ["model.safetensors", "run.json"]


def by_hand(source, digits, settings):
    """The whole network in every step, without a cache or a cut: loops, and autograd over all of it."""
    model = with_new_head(source.model, 10, settings.seed)
    trained = [model.get_parameter(name) for name in resolve_parameters(model, f"blocks:{settings.k}")]
    train = digits.train.subset(choose_subset(digits.train.labels, settings.n, settings.seed))
    velocity = [torch.zeros_like(p) for p in trained]
    for epoch in range(1, settings.epochs + 1):
        model.eval()
        for module in (m for b in range(3 - settings.k, 3) for m in model.net.stage3[b].modules()):
            module.training = True
        for rows in batch_order(settings.n, settings.batch_size, settings.seed, epoch):
            loss = functional.cross_entropy(model(train.images(rows)), train.labels[rows])
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                for p, v, g in zip(trained, velocity, gradients, strict=True):
                    v.mul_(settings.momentum).add_(g + settings.weight_decay * p)
                    p.sub_(step_rate(settings.learning_rate, settings.epochs, epoch) * v)
    return model


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_cut_and_cached_equals_training_the_whole_network(tmp_path, source, digits, k, cache_mb):
    settings = quick(k=k, learning_rate=0.02, cache_mb=cache_mb)
    run = fine_tune(source, digits, settings, tmp_path)
    expected = by_hand(source, digits, settings).state_dict()
    for name, value in weights(run).items():  # float32, nine steps; other batch sizes round otherwise
        torch.testing.assert_close(value, expected[name], rtol=2e-4, atol=2e-5, msg=name)


def test_activations_are_kept_only_within_the_budget(source, digits):
    frozen = split(source.model, 0).frozen
    needed = len(digits.test) * 48 * 4
    kept, thrifty = (Activations(frozen, digits.test, CPU, budget) for budget in (needed, needed - 1))
    assert kept.kept is not None
    assert thrifty.kept is None
    rows = torch.tensor([700, 3, 3])
    torch.testing.assert_close(kept.batch(rows)[0], thrifty.batch(rows)[0], rtol=1e-5, atol=1e-6)
    assert kept.batch(rows)[1].tolist() == digits.test.labels[rows].tolist()


def test_natural_and_robust_meet_the_same_images_heads_and_batches(tmp_path, source, digits):
    other = with_new_head(source.model, 4, 9)
    with torch.no_grad():
        other.net.stage1[0].conv1.weight.mul_(2)
    save_model(tmp_path / "other.safetensors", other, {})
    still = {"k": 0, "epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0}
    one = fine_tune(source, digits, quick(**still), tmp_path / "one")
    two = fine_tune(tmp_path / "other.safetensors", digits, quick(**still), tmp_path / "two")
    assert one.info["data"]["train_index"] == two.info["data"]["train_index"]
    assert torch.equal(one.model.model.net.head.weight, two.model.model.net.head.weight)


def test_dropout_is_seeded(tmp_path):
    torch.manual_seed(0)
    model = build("mobilenet_v2", num_classes=2, mean=(0.5,) * 3, std=(0.5,) * 3, input_shape=(3, 32, 32))
    save_model(tmp_path / "m.safetensors", model, {})
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(tmp_path / "few.npz", x=x, y=np.arange(12) % 2)
    data = load_data(DataSettings(data=str(tmp_path / "few.npz")), (3, 32, 32))
    runs = []
    for name in ("a", "b"):
        torch.manual_seed(len(runs))
        runs.append(fine_tune(tmp_path / "m.safetensors", data, quick(k=0, n=12, epochs=2), tmp_path / name))
    assert same(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize(
    ("architecture", "block"), [("mnasnet1_0", "net.layers.13"), ("shufflenet_v2_x1_0", "net.stage4.3")]
)
def test_other_families_are_fine_tuned_too(tmp_path, architecture, block):
    torch.manual_seed(0)
    model = build(architecture, num_classes=2, mean=(0.5,) * 3, std=(0.5,) * 3, input_shape=(3, 64, 64))
    save_model(tmp_path / "m.safetensors", model, {})
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(tmp_path / "few.npz", x=x, y=np.arange(12) % 2)
    data = load_data(DataSettings(data=str(tmp_path / "few.npz")), (3, 64, 64))
    for k in (0, 1):
        run = fine_tune(tmp_path / "m.safetensors", data, quick(k=k, n=12, epochs=1), tmp_path / f"{k}")
        moved = {name for name, value in weights(run).items() if not torch.equal(value, model.state_dict()[name])}
        head = {name for name in moved if name.startswith(("net.classifier", "net.fc"))}
        assert len(head) == 2 and run.info["k"] == k
        assert any(name.startswith(block) for name in moved) == bool(k)
        assert not k or not any(name.startswith(("net.layers.8", "net.stage2", "net.conv1")) for name in moved)
        assert k or moved == head


def test_record_says_how_the_run_was_made(tmp_path, source, digits):
    run = fine_tune(source, digits, quick(n=41, evaluate_every=2, epochs=4), tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    assert info == dict(run.info)
    assert (info["format"], info["version"], info["k"], info["n"], info["seed"]) == ("upweight-run", 1, 1, 41, 1)
    assert info["settings"]["epochs"] == 4
    assert info["weight_decay"] == pytest.approx(5e-4)
    assert info["source"]["name"] == "mine"
    assert info["source"]["sha256"] == source.sha256
    assert info["source"]["metadata"]["accuracy"] == {"natural": 0.25}
    assert "history" not in info["source"]["metadata"]
    assert info["data"]["train_index"] == run.train.index.tolist()
    assert info["data"]["test_index"] == {"start": 1000, "stop": 1797}
    assert [e["epoch"] for e in info["history"] if "test_accuracy" in e] == [1, 3, 4]
    assert info["history"][-1]["test_accuracy"] == info["accuracy"]["test"]
    model = run.model.model
    with torch.no_grad():
        hits = model(run.test.images(slice(0, 797))).argmax(1) == run.test.labels
    assert info["accuracy"]["test"] == pytest.approx(hits.double().mean().item(), abs=2 / 797)  # ties and rounding


def test_paper_recipe_is_the_default_and_n_none_means_all(tmp_path, source):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=rng.integers(0, 255, (9, 28, 28), np.uint8), y=np.arange(9) % 3)
    data = load_data(DataSettings(data=str(tmp_path / "own.npz")), (1, 28, 28))
    run = fine_tune(source, data, FineTuneSettings(n=None, device="cpu"), tmp_path / "run")
    assert (run.info["n"], run.info["settings"]["epochs"], len(run.info["history"])) == (9, 100, 100)
    assert run.info["data"]["train_index"] == list(range(9))


@pytest.mark.parametrize(("epochs", "drops"), [(100, [35, 68]), (150, [51, 101]), (3, [2, 3]), (2, [2]), (1, [])])
def test_rate_drops_after_each_third(epochs, drops):
    rates = [step_rate(0.1, epochs, epoch) for epoch in range(1, epochs + 1)]
    assert rates[0] == pytest.approx(0.1)
    assert [e for e in range(2, epochs + 1) if rates[e - 1] < rates[e - 2]] == drops
    assert min(rates) >= 0.001 * (1 - 1e-12)


def test_finished_run_is_returned_at_once(tmp_path, source, digits):
    first = fine_tune(source, digits, quick(), tmp_path)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns

    def never(*what):
        raise AssertionError(what)

    again = fine_tune(source, digits, quick(cache_mb=1), tmp_path, never)
    assert again.info == first.info
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp


def test_other_settings_in_the_folder_are_refused_and_kept(tmp_path, source, digits):
    fine_tune(source, digits, quick(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    words = r"was made with k=1, seed=1; this call asks k=0, seed=5. Pass --overwrite .* or --out DIR"
    with pytest.raises(RunMismatch, match=words):
        fine_tune(source, digits, quick(k=0, seed=5), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(UsageError, match="residual blocks"):
        fine_tune(source, digits, quick(k=10), tmp_path, overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    replaced = fine_tune(source, digits, quick(k=0, seed=5), tmp_path, overwrite=True)
    assert (replaced.info["k"], replaced.info["seed"]) == (0, 5)


def test_stopped_run_of_other_settings_is_refused_and_kept(tmp_path, source, digits):
    with pytest.raises(Stop):
        fine_tune(source, digits, quick(), tmp_path, stop_at(1))
    with pytest.raises(RunMismatch, match="--overwrite"):
        fine_tune(source, digits, quick(n=50), tmp_path)
    assert fine_tune(source, digits, quick(n=50), tmp_path, overwrite=True).info["n"] == 50


def test_diverged_fit_is_refused_and_leaves_no_run(tmp_path, source, digits):
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(source, digits, quick(k=3, learning_rate=1e30), tmp_path)
    assert not (tmp_path / "run.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 10}, "k is 10, but this network has 9 residual blocks"),
        ({"n": 9}, "9 images cannot hold all 10 classes"),
        ({"n": 1001}, "1001 images are asked for and 1000 are there"),
        ({"device": "tpu9"}, "no device 'tpu9'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, source, digits, changes, words):
    with pytest.raises(UsageError, match=words):
        fine_tune(source, digits, quick(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_of_another_shape_are_refused(tmp_path, source):
    with pytest.raises(UsageError, match=r"gives images of shape \(1, 8, 8\) and mine takes \(1, 28, 28\)"):
        fine_tune(source, load_data(DataSettings(), (1, 8, 8)), quick(), tmp_path)


def test_one_image_left_over_does_not_stop_batch_norm(tmp_path):
    torch.manual_seed(0)
    model = build("small_resnet", num_classes=2, mean=(0.3,), std=(0.3,), input_shape=(1, 8, 8))
    save_model(tmp_path / "tiny.safetensors", model, {})  # its last stage works on a single position
    data = load_data(DataSettings(), (1, 8, 8))
    run = fine_tune(tmp_path / "tiny.safetensors", data, quick(n=33, epochs=1), tmp_path / "run")
    assert run.info["n"] == 33


def test_run_is_read_back_with_its_images(tmp_path, source, digits):
    run = fine_tune(source, digits, quick(), tmp_path)
    back = load_run(tmp_path)
    assert same(weights(back), weights(run))
    assert back.train.index.tolist() == run.info["data"]["train_index"]
    assert torch.equal(back.train.images([0, 39]), run.train.images([0, 39]))
    assert len(back.test) == 797
    assert not any(isinstance(m, nn.Module) and m.training for m in back.model.model.modules())


def test_run_on_reduced_images_is_told_from_the_plain_one_and_read_back(tmp_path, source):
    data = load_data(DataSettings(resolution=3), (1, 28, 28))
    run = fine_tune(source, data, quick(epochs=1), tmp_path)
    assert run.info["data"]["settings"] == {"data": "digits", "root": None, "download": False, "resolution": 3}
    back = load_run(tmp_path)
    assert back.train.resolution == back.test.resolution == 3
    assert torch.equal(back.train.images([0, 39]), run.train.images([0, 39]))
    plain = load_data(DataSettings(), (1, 28, 28))
    with pytest.raises(RunMismatch, match="data_sha256"):
        fine_tune(source, plain, quick(epochs=1), tmp_path)
    with pytest.raises(DataError, match="is not the data set"):
        load_run(tmp_path, plain)


def test_run_with_exchanged_weights_or_data_is_refused(tmp_path, source, digits):
    run = fine_tune(source, digits, quick(), tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(info | {"data": info["data"] | {"fingerprint": "0" * 64}}))
    with pytest.raises(DataError, match=r"is not the data set that .* was trained on"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(info))
    save_model(tmp_path / "model.safetensors", run.model.model, {"other": 1})
    with pytest.raises(CheckpointError, match=r"is not the file that run\.json describes"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format": "upweight-run", "version": 99}', "another format or version"),
    ],
)
def test_damaged_record_is_named(tmp_path, content, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        load_run(tmp_path)


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no finished run, as run\.json is not there: fine-tune first"):
        load_run(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("k", [0, 1])
def test_gpu_agrees_with_the_cpu(tmp_path, source, digits, k):
    settings = {"k": k, "epochs": 2, "learning_rate": 0.01}
    cpu = fine_tune(source, digits, quick(**settings), tmp_path / "cpu")
    gpu = fine_tune(source, digits, quick(**settings, device="cuda"), tmp_path / "gpu")
    again = fine_tune(source, digits, quick(**settings, device="cuda"), tmp_path / "again")
    assert same(weights(gpu), weights(again))
    for name, value in weights(cpu).items():
        torch.testing.assert_close(weights(gpu)[name], value, rtol=1e-4, atol=1e-5, msg=name)
