"""Pre-training: it learns, an attack in training helps against attacks, and it can be repeated and resumed."""

import json
import math

import numpy as np
import pytest
import torch
from upweight import UsageError
from upweight.models.accuracy import natural_accuracy, robust_accuracy
from upweight.models.checkpoints import load_model
from upweight.models.data import load_data
from upweight.models.errors import RunMismatch
from upweight.models.pretrain import learning_rate, pixel_statistics, pretrain
from upweight.models.settings import DataSettings, PGDSettings, PretrainSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Bars, upright or lying, among noise: a task that a few steps learn."""
    rng = np.random.default_rng(0)

    def draw(n):
        y = np.arange(n) % 2
        x = rng.uniform(0, 0.5, (n, 28, 28))
        for image, label in zip(x, y, strict=True):
            at = rng.integers(6, 20)
            (image.T if label else image)[at : at + 3] = 0.9
        return x.astype(np.float32), y

    path = tmp_path_factory.mktemp("shapes") / "bars.npz"
    (x, y), (x_test, y_test) = draw(128), draw(40)
    np.savez(path, x=x, y=y, x_test=x_test, y_test=y_test)
    return str(path)


def quick(shapes, **changes):
    base = {
        "data": shapes,
        "epochs": 2,
        "batch_size": 32,
        "eval_steps": 3,
        "steps": 2,
        "eval_images": 20,
        "device": "cpu",
    }
    return PretrainSettings(**(base | changes))


def test_learns_and_says_how(tmp_path, shapes):
    told = []
    out = tmp_path / "made" / "source.safetensors"
    record = pretrain(quick(shapes, epochs=4, learning_rate=0.05), out, lambda *what: told.append(what))
    assert told[:5] == [("pretrain", epoch, 4) for epoch in range(5)]
    assert told[-1] == ("PGD evaluation", 20, 20)
    assert record == json.loads(out.with_suffix(".json").read_text())
    assert sorted(p.name for p in out.parent.iterdir()) == ["source.json", "source.safetensors"]
    loaded = load_model(out)
    assert loaded.sha256 == record["sha256"]
    assert loaded.metadata["settings"] == record["settings"]
    accuracy = record["accuracy"]
    assert accuracy["natural"] > 0.9
    assert (accuracy["natural_images"], accuracy["pgd_images"], accuracy["pgd_steps"]) == (40, 20, 3)
    test = load_data(DataSettings(data=shapes), (1, 28, 28)).test
    assert accuracy["natural"] == pytest.approx(natural_accuracy(loaded.model, test, CPU), abs=1 / 40)
    assert loaded.spec.mean == pytest.approx((float(record_mean(shapes)),), abs=1e-3)


def record_mean(shapes):
    with np.load(shapes) as arrays:
        return arrays["x"].mean()


def test_attack_in_training_helps_against_attacks(tmp_path, shapes):
    attack = {"eps": 2.0, "epochs": 5, "learning_rate": 0.05}
    natural = pretrain(quick(shapes, **attack), tmp_path / "n.safetensors")["accuracy"]
    robust = pretrain(quick(shapes, adversarial=True, **attack), tmp_path / "r.safetensors")["accuracy"]
    assert robust["pgd"] > natural["pgd"]
    test = load_data(DataSettings(data=shapes), (1, 28, 28)).test
    model = load_model(tmp_path / "r.safetensors").model
    same = PGDSettings(eps=2.0, steps=3)
    assert robust_accuracy(model, test.subset(slice(0, 20)), same, 0, CPU) == pytest.approx(robust["pgd"], abs=0.05)


@pytest.mark.parametrize("adversarial", [False, True])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, shapes, adversarial):
    settings = quick(shapes, adversarial=adversarial, flip=True)
    torch.manual_seed(1)
    whole = pretrain(settings, tmp_path / "whole.safetensors")

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        raise Stop

    out = tmp_path / "stopped.safetensors"
    with pytest.raises(Stop):
        pretrain(settings, out, stop)
    assert not out.exists()
    torch.manual_seed(2)
    resumed = pretrain(settings, out)
    assert resumed["history"] == whole["history"]
    assert resumed["sha256"] == whole["sha256"]
    assert not (tmp_path / "stopped.safetensors.partial").exists()


def test_finished_source_is_returned_and_another_recipe_refused(tmp_path, shapes):
    out = tmp_path / "source.safetensors"
    first = pretrain(quick(shapes), out)
    before = out.read_bytes()
    assert pretrain(quick(shapes, device="auto"), out, lambda *_: pytest.fail("trained again")) == first
    with pytest.raises(RunMismatch, match=r"was made with seed=0; this call asks seed=3\. Pass --overwrite"):
        pretrain(quick(shapes, seed=3), out)
    assert out.read_bytes() == before
    assert pretrain(quick(shapes, seed=3), out, overwrite=True)["sha256"] != first["sha256"]


def test_file_without_its_record_is_not_replaced(tmp_path, shapes):
    out = tmp_path / "mine.safetensors"
    out.write_bytes(b"dear to somebody")
    with pytest.raises(RunMismatch, match=r"no whole .*mine\.json says how it was made"):
        pretrain(quick(shapes), out)
    assert out.read_bytes() == b"dear to somebody"


def test_exchanged_weights_are_noticed(tmp_path, shapes):
    out = tmp_path / "source.safetensors"
    pretrain(quick(shapes, epochs=1), out)
    out.write_bytes(out.read_bytes() + b"\0")
    with pytest.raises(RunMismatch, match="is not the file that"):
        pretrain(quick(shapes, epochs=1), out)


def test_unknown_architecture_is_refused_before_any_image_is_read(tmp_path):
    settings = PretrainSettings(architecture="resnet51", data=str(tmp_path / "none.npz"))
    with pytest.raises(
        UsageError, match=r"There is no architecture 'resnet51'; choose one of small_resnet, .*resnet18"
    ):
        pretrain(settings, tmp_path / "out.safetensors")


def test_limit_takes_the_first_images(tmp_path, shapes):
    record = pretrain(quick(shapes, limit=30, epochs=1, eval_images=None), tmp_path / "s.safetensors")
    assert record["data"]["train_images"] == 30
    assert record["accuracy"]["pgd_images"] == 40


def test_rate_warms_up_to_its_peak_and_falls_to_nothing():
    settings = PretrainSettings(learning_rate=0.2, warm_up=0.25)
    assert learning_rate(settings, 0.0) == pytest.approx(0.01)
    assert learning_rate(settings, 0.125) < learning_rate(settings, 0.2) < 0.2
    assert learning_rate(settings, 0.25) == pytest.approx(0.2)
    assert learning_rate(settings, 0.625) == pytest.approx(0.1)
    assert learning_rate(settings, 1.0) == pytest.approx(0.0)
    assert learning_rate(PretrainSettings(warm_up=0.0), 0.0) == pytest.approx(0.1)


def test_statistics_are_those_of_all_pixels(shapes):
    train = load_data(DataSettings(data=shapes), (1, 28, 28)).train
    mean, std = pixel_statistics(train, batch_size=50)
    x = train.images(slice(0, len(train))).double()
    assert mean[0] == pytest.approx(x.mean().item(), abs=5e-5)
    assert std[0] == pytest.approx(math.sqrt(x.var(correction=0).item()), abs=5e-5)
