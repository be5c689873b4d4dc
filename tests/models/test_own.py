"""A network and examples of the user's own, by name."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from upweight import UsageError
from upweight.models.errors import CheckpointError, DataError
from upweight.models.own import as_images, load_examples, load_own_model

FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout())

def wrong():
    return {"a": 1}

def fails():
    raise KeyError("config")
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The current folder holds a module of the user's; it is forgotten afterwards."""
    (tmp_path / "their_network.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield "their_network:make"
    import sys

    sys.modules.pop("their_network", None)


def state(**changes):
    return {"1.weight": torch.arange(12.0).view(3, 4), "1.bias": torch.ones(3)} | changes


@pytest.mark.parametrize("nested", [None, "state_dict", "model", "model_weights"])
@pytest.mark.parametrize("how", ["new", "old", "safetensors"])
def test_factory_and_weights_in_every_dress(theirs, tmp_path, nested, how):
    path = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pt")
    if how == "safetensors":
        save_file(state(), path)
    else:
        content = {nested: state(), "epoch": 3} if nested else state()
        torch.save(content, path, _use_new_zipfile_serialization=how == "new")
    model = load_own_model(theirs, path)
    assert torch.equal(model[1].weight, state()["1.weight"])
    assert not model[2].training


def test_networks_that_ask_for_the_version_of_their_modules_are_filled(theirs, tmp_path):
    (tmp_path / "their_network.py").write_text(
        "from torchvision.models import mnasnet0_5\n\ndef make():\n    return mnasnet0_5(weights=None, num_classes=2)\n"
    )
    torch.manual_seed(0)
    wanted = load_own_model(theirs, None).state_dict()
    torch.save(wanted, tmp_path / "w.pt")
    found = load_own_model(theirs, tmp_path / "w.pt").state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_without_weights_the_network_is_as_the_factory_made_it(theirs):
    assert isinstance(load_own_model(theirs, None), nn.Sequential)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("their_network", "write it as package.module:function"),
        (":make", "write it as package.module:function"),
        ("their_network:nothing", "AttributeError"),
        ("no_such_module_here:make", "ModuleNotFoundError"),
        ("their_network:wrong", r"gives a dict; a torch\.nn\.Module is wanted"),
        ("their_network:fails", "KeyError: 'config'"),
    ],
)
def test_factories_that_cannot_be_used(theirs, name, words):
    with pytest.raises(UsageError, match=words):
        load_own_model(name, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (state(extra=torch.zeros(1)), "does not fit Sequential: .*extra"),
        ({"1.weight": torch.zeros(3, 4)}, r"does not fit Sequential: .*1\.bias"),
        (state(**{"1.bias": torch.zeros(5)}), "does not fit Sequential: .*size mismatch"),
        (state(**{"1.bias": torch.tensor([1.0, float("nan"), 0.0])}), r"NaN or infinite numbers in 1\.bias"),
        ({"state_dict": {}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit(theirs, tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        load_own_model(theirs, tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weight_files_that_are_missing_or_damaged(theirs, tmp_path, name):
    with pytest.raises(CheckpointError, match="There is no file"):
        load_own_model(theirs, tmp_path / name)
    (tmp_path / name).write_bytes(b"neither one nor the other")
    with pytest.raises(CheckpointError, match="is cut off or no"):
        load_own_model(theirs, tmp_path / name)


def test_npz_goes_in_as_it_is(tmp_path):
    x = np.array([[0, 255], [51, 102]], np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=np.array([1, 0]))
    inputs, labels = load_examples(str(tmp_path / "own.npz"), None, "train")
    torch.testing.assert_close(inputs, torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 3))}, "has no y; it holds x"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, r"holds x float64 \(2, 3\) and y int64 \(3,\)"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2)}, "labels .* are wanted"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, "are wanted"),
        ({"x": np.full((2, 3), np.nan), "y": np.zeros(2, int)}, "NaN or infinite numbers in x"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, words):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=words):
        load_examples(str(tmp_path / "own.npz"), None, "train")


def test_damaged_and_missing_npz(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        load_examples(str(tmp_path / "own.npz"), None, "test")
    (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"is no whole \.npz"):
        load_examples(str(tmp_path / "own.npz"), None, "test")


def test_named_data_need_a_shape():
    with pytest.raises(UsageError, match="say what size your network takes"):
        load_examples("digits", None, "train")
    test = load_examples("digits", (3, 16, 16), "test")
    assert (len(test), test[0][0].shape) == (797, (3, 16, 16))


def test_named_data_are_read_from_their_folder(tmp_path):
    with pytest.raises(DataError, match="No folder is given for kmnist"):
        load_examples("kmnist", (1, 28, 28), "train")
    with pytest.raises(DataError, match=str(tmp_path)):
        load_examples("kmnist", (1, 28, 28), "train", str(tmp_path))


def test_inputs_as_pictures():
    x, y = torch.linspace(-2, 2, 2 * 9).view(2, 3, 3), torch.tensor([0, 1])
    images = as_images(x, y, "a.npz").raw_images([0, 1])
    assert (float(images.min()), float(images.max()), images.shape) == (0.0, 1.0, (2, 1, 3, 3))
    within = torch.rand(2, 3, 4, 4)
    assert torch.equal(as_images(within, y, "a.npz").raw_images([1]), within[1:])
    for shape in ((2, 9), (2, 5, 3, 3)):
        with pytest.raises(UsageError, match=r"a\.npz have shape \[.*\] and are no images; leave --image out"):
            as_images(torch.zeros(shape), y, "a.npz")
