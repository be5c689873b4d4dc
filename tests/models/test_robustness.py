"""The accuracy of a run or a source under an attack: against loops, kept once, and refused where it cannot be meant."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from tiny import done, refused, strict_json
from torch.nn import functional
from upweight import UsageError
from upweight.models.accuracy import asked_images
from upweight.models.checkpoints import load_model, save_model
from upweight.models.data import load_data
from upweight.models.errors import CheckpointError
from upweight.models.images import ArrayPixels, ImageSet
from upweight.models.robustness import measure_run, read_records, standing_record
from upweight.models.runs import load_run
from upweight.models.settings import DataSettings, RobustnessSettings

WEAK = {"norm": "linf", "eps": 0.05, "steps": 3, "random_start": False, "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on 30 test images."""
    out = tmp_path_factory.mktemp("made") / "run"
    done("fine-tune", "--source", "robust", "--data", tiny.data(), "--n", 40, "--epochs", 4, "--out", out)
    return out


@pytest.fixture
def run(made, tmp_path):
    """A copy of that run."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("pets") / "pets.npz"
    np.savez(path, x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4) % 2)
    return path


def by_hand(read, eps, steps, stride):
    """Sign steps from the image itself, written out for one image after another."""
    model, right, standing = read.model.model, 0, 0
    for image, label in read.test:
        x, y = image[None], torch.tensor([label])
        moved = x.clone()
        for _ in range(steps):
            moved.requires_grad_(True)
            (grad,) = torch.autograd.grad(functional.cross_entropy(model(moved), y), moved)
            moved = torch.max(torch.min(moved.detach() + stride * grad.sign(), x + eps), x - eps).clamp(0, 1)
        right += int(model(x).argmax() == y)
        standing += int(model(moved).argmax() == y)
    return right / len(read.test), standing / len(read.test)


def test_rates_agree_with_a_loop_over_the_images(run):
    record = measure_run(run, RobustnessSettings(**WEAK))
    clean, attacked = by_hand(load_run(run), eps=0.05, steps=3, stride=2.5 * 0.05 / 3)
    assert (record["natural"], record["pgd"]) == pytest.approx((clean, attacked))
    assert record["pgd"] < record["natural"]
    assert (record["natural_images"], record["pgd_images"]) == (tiny.QUERIES, tiny.QUERIES)  # 1000 are asked for
    assert record["attack"] == "Linf 0.05, PGD-3"


def test_a_run_is_measured_once_for_each_attack_and_its_weights(run):
    settings = RobustnessSettings(**WEAK)
    assert standing_record(run, settings) is None
    first = measure_run(run, settings)
    held = tiny.state(run)
    never = pytest.fail
    assert measure_run(load_run(run), RobustnessSettings(**WEAK, stop_early=False), never) == first
    assert measure_run(run, RobustnessSettings(**WEAK | {"step_size": 2.5 * 0.05 / 3}), never) == first
    assert standing_record(run, settings) == first and tiny.state(run) == held
    others = [
        {"eps": 0.1},
        {"attack_seed": 1},
        {"images": 7},
        {"keep": "success", "restarts": 2},
        {"random_start": True},
    ]
    for change in others:
        measure_run(run, RobustnessSettings(**WEAK | change))
    records = read_records(run)
    assert len(records) == 1 + len(others) and records[0] == first
    assert records[3]["pgd_images"] == 7 and records[3]["natural_images"] == tiny.QUERIES
    assert records[4]["attack"] == "Linf 0.05, PGD-3, 2 restarts, first success kept"
    assert records[4]["pgd"] <= first["pgd"] and records[1]["pgd"] <= first["pgd"]

    other = load_model(
        run / "model.safetensors"
    ).model  # the run is made anew: what was measured before stays and is not taken
    with torch.no_grad():
        other.net.head.weight.zero_()
    save_model(run / "model.safetensors", other, {})
    info = json.loads((run / "run.json").read_text())
    info["model_sha256"] = load_model(run / "model.safetensors").sha256
    (run / "run.json").write_text(json.dumps(info))
    assert standing_record(run, settings) is None
    assert measure_run(run, settings)["natural"] != first["natural"]
    assert read_records(run)[: len(records)] == records


def test_command_measures_a_run_and_tells_the_counts(run):
    words = ("robustness", run, "--norm", "linf", "--eps", 0.05, "--steps", 3, "--no-random-start", "--device", "cpu")
    text = done(*words)
    record = strict_json(done(*words, "--json"))
    assert record == read_records(run)[0] and len(read_records(run)) == 1
    assert text == (
        f"{run}: accuracy {record['natural']:.4f} on 30 images, {record['pgd']:.4f} on 30 under Linf 0.05, PGD-3\n"
    )
    more = (
        "--restarts",
        2,
        "--keep",
        "success",
        "--stop-early",
        "--step-size",
        0.01,
        "--images",
        9,
        "--attack-seed",
        3,
    )
    settings = strict_json(done(*words, *more, "--json"))["settings"]
    wanted = {"restarts": 2, "keep": "success", "stop_early": True, "step_size": 0.01, "images": 9, "attack_seed": 3}
    assert {name: settings[name] for name in wanted} == wanted


def test_source_is_measured_on_data_that_are_named():
    words = ("robustness", "natural", "--data", tiny.data(), "--steps", 2, "--device", "cpu", "--json")
    held = strict_json(done(*words))
    source = load_model("natural")
    assert held["model_sha256"] == source.sha256
    test = load_data(DataSettings(data=str(tiny.data())), source.spec.input_shape).test
    hits = source.model(test.images(slice(0, 30))).argmax(1) == test.labels
    assert held["natural"] == pytest.approx(hits.double().mean().item())
    assert "seconds" in held and held["attack"] == "L2 1, PGD-2"


@pytest.mark.parametrize(
    ("code", "words", "sentence"),
    [
        (2, ("natural",), "natural is a source, and no data are named to test it on; name those it was trained on"),
        (2, ("natural", "--root", "/"), "give --data too"),
        (3, ("empty!",), "holds no finished run, as run.json is not there"),
        (3, ("nowhere",), "nowhere holds no finished run"),
        (3, ("nowhere.pt", "--data", "data!"), "There is no weight file nowhere.pt"),
        (2, ("run!", "--data", "data!"), "is a run folder, and a run is tested on its own data"),
        (2, ("run!", "--images", "31"), "31 images are asked for and the test set has 30; ask for 30 or fewer"),
        (2, ("run!", "--images", "0"), "images is 0"),
        (2, ("run!", "--attack-seed", "-1"), "attack_seed is -1"),
        (2, ("run!", "--norm", "l1"), "norm is 'l1'"),
        (2, ("natural", "--data", "pets!"), "natural tells 10 classes apart and pets.npz has 2"),
        (2, (), "PATH must be given"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_everything(run, two_classes, tmp_path, code, words, sentence):
    (tmp_path / "empty").mkdir()
    places = {"run!": run, "data!": tiny.data(), "empty!": tmp_path / "empty", "pets!": two_classes}
    before = tiny.state(tmp_path)
    assert sentence in refused(code, "robustness", *(places.get(word, word) for word in words))
    assert tiny.state(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": "upweight-robustness", "version": 1, "records": [3]}', "is damaged"),
        ('{"format": "upweight-robustness", "version": 2, "records": []}', "another format or version"),
    ],
)
def test_damaged_records_are_named_and_kept(run, content, words):
    (run / "robustness.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"robustness\.json .*{words}.*take it away"):
        measure_run(run, RobustnessSettings(**WEAK))
    assert (run / "robustness.json").read_text() == content


def labelled(labels):
    y = torch.tensor(labels)
    return ImageSet(
        pixels=ArrayPixels(torch.zeros(len(y), 1, 2, 2)), labels=y, index=torch.arange(len(y)), input_shape=(1, 2, 2)
    )


def test_images_are_the_first_unless_they_lie_class_by_class():
    assert asked_images(labelled([0, 1, 2, 0, 1, 2]), 4).index.tolist() == [0, 1, 2, 3]
    spread = asked_images(labelled([0] * 10 + [1] * 10 + [2] * 10), 6)
    assert spread.index.tolist() == [0, 5, 10, 15, 20, 25]
    assert spread.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(asked_images(labelled([0, 0, 1]), 9)) == len(asked_images(labelled([0, 0, 1]), None)) == 3


def test_settings_are_an_attack_and_a_count():
    with pytest.raises(UsageError, match="eps is -1"):
        RobustnessSettings(eps=-1)
    settings = RobustnessSettings(eps=8 / 255, norm="linf", steps=100, step_size=2 / 255)
    assert settings.attack.stride == pytest.approx(2 / 255)
    assert settings.attack.label == "Linf 0.0313725, PGD-100"
