"""Our own weight files: written whole, read back to the bit, refused when anything is off."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from upweight import UsageError
from upweight.models.accuracy import natural_accuracy, robust_accuracy
from upweight.models.checkpoints import SOURCES, file_hash, load_model, read_tensors, save_model, source_path
from upweight.models.data import load_data
from upweight.models.datasets import DEBIAN_FASHION
from upweight.models.errors import CheckpointError
from upweight.models.settings import DataSettings, PGDSettings
from upweight.models.zoo import build

CPU = torch.device("cpu")


def network(**changes):
    torch.manual_seed(0)
    return build("small_resnet", **({"num_classes": 3, "mean": (0.3,), "std": (0.4,)} | changes))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "own.safetensors"
    save_model(path, network(), {"seed": 4, "words": "naïve"})
    return path


def header(path):
    return json.loads(read_tensors(path)[1]["upweight"])


def rewrite(path, change_tensors=None, change_header=None):
    tensors, words = read_tensors(path)
    if change_tensors:
        change_tensors(tensors)
    if change_header:
        content = json.loads(words["upweight"])
        change_header(content)
        words = {"upweight": json.dumps(content)}
    save_file(tensors, path, metadata=words)


def test_written_then_read_is_the_same_network(saved):
    loaded = load_model(saved)
    expected = network()
    assert loaded.spec == expected.spec
    assert all(torch.equal(loaded.model.state_dict()[k], v) for k, v in expected.state_dict().items())
    assert loaded.metadata["seed"] == 4
    assert loaded.metadata["words"] == "naïve"
    assert loaded.metadata["found"] == "small_resnet with 3 classes; normaliser from the file; read by safetensors"
    assert (loaded.name, loaded.path, loaded.sha256) == ("own", saved, file_hash(saved))
    assert not loaded.model.training
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_equal_networks_make_equal_files(saved, tmp_path):
    save_model(tmp_path / "again.safetensors", network(), {"seed": 4, "words": "naïve"})
    assert file_hash(tmp_path / "again.safetensors") == file_hash(saved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "own.safetensors"]


def test_reading_global_random_numbers_stays_out_of_it(saved):
    state = torch.random.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_missing_file_and_unknown_source(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no weight file .*gone\.safetensors; give the path"):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"no weight file .*; give the path"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="no shipped source 'strong'; choose natural or robust"):
        source_path("strong")


@pytest.mark.parametrize("keep", [0, 4, 9, 100, 0.5, 0.999])
def test_truncated_files_are_refused(saved, keep):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(CheckpointError, match="is cut off or no safetensors file"):
        load_model(saved)


def drop(name):
    return lambda content: content.pop(name)


def put(**values):
    return lambda content: content.update(values)


def spec_with(**values):
    return lambda content: content["spec"].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("spec"), "damaged header"),
        (drop("format"), "damaged header"),
        (put(spec=[]), "damaged header"),
        (put(metadata=5), "damaged header"),
        (put(version=2), "format version 2; this release reads upweight-model 1"),
        (put(format="other"), "format version of other"),
        (spec_with(architecture="resnet9000"), "no architecture 'resnet9000'"),
        (spec_with(std=[0.0]), "must be above 0"),
        (spec_with(num_classes="many"), "damaged header"),
        (
            spec_with(architecture="resnet18", input_shape=[3, 8, 8], mean=[0, 0, 0], std=[1, 1, 1]),
            "does not fit resnet18",
        ),
        (spec_with(num_classes=10**12), r"head.weight of shape|has net.head.bias of shape \(3,\)"),
    ],
)
def test_damaged_headers_are_refused(saved, change, words):
    rewrite(saved, change_header=change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)


def poison(tensors):
    tensors["net.stage2.0.bn1.running_var"][5] = math.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (poison, r"NaN or infinite numbers in net\.stage2\.0\.bn1\.running_var"),
        (lambda t: t.pop("net.head.bias"), r"lacks 1 tensors such as net\.head\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "has 1 others such as extra"),
        (lambda t: t.update({"net.head.bias": torch.zeros(4)}), r"net\.head\.bias of shape \(4,\) instead of \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, change, words):
    rewrite(saved, change_tensors=change)
    with pytest.raises(CheckpointError, match=words):
        load_model(saved)


def test_options_for_foreign_files_are_refused_for_ours(saved):
    with pytest.raises(UsageError, match="says itself what it holds; leave architecture, mean out"):
        load_model(saved, architecture="resnet18", mean=(0.5,))


@pytest.mark.parametrize("name", SOURCES)
def test_shipped_sources_say_how_they_were_made(name):
    path = source_path(name)
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    loaded = load_model(name)
    assert record["sha256"] == file_hash(path) == loaded.sha256
    assert path.stat().st_size < 2 * 2**20
    assert record["settings"]["adversarial"] == (name == "robust")
    assert record["data"]["train_images"] == 60_000
    assert {k: v for k, v in record.items() if k not in {"sha256", "seconds", "device"}} == header(path)["metadata"]
    assert len(record["history"]) == record["settings"]["epochs"]
    assert loaded.record()["path"] == f"upweight/models/sources/{name}.safetensors"
    assert "history" not in loaded.record()["metadata"]


@pytest.mark.skipif(not Path(DEBIAN_FASHION).is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("name", SOURCES)
def test_shipped_sources_are_as_accurate_as_they_say(name):
    loaded = load_model(name)
    said = loaded.metadata["accuracy"]
    test = load_data(DataSettings(data="fashion-mnist"), loaded.spec.input_shape).test
    some = test.subset(slice(0, 1000))
    spread = 4 * math.sqrt(0.25 / len(some))
    assert natural_accuracy(loaded.model, some, CPU) == pytest.approx(said["natural"], abs=spread)
    few = test.subset(slice(0, 100))
    attack = PGDSettings(norm=said["pgd_norm"], eps=said["pgd_eps"], steps=said["pgd_steps"])
    measured = robust_accuracy(loaded.model, few, attack, 0, CPU)
    assert measured == pytest.approx(said["pgd"], abs=4 * math.sqrt(0.25 / len(few)))
