"""The named data sets are read from small files made here in the layout of the real ones."""

import gzip
import pickle
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from upweight.models import datasets
from upweight.models.data import load_data
from upweight.models.errors import DataError
from upweight.models.settings import DataSettings

SHAPES = {"train": 7, "t10k": 4}


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_family(folder, packed, counts=SHAPES):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    written = {}
    for prefix, n in counts.items():
        x, y = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            name = f"{prefix}-{kind}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
        written[prefix] = (x, y)
    return written


@pytest.mark.parametrize(("name", "own"), [("fashion-mnist", "FashionMNIST"), ("mnist", "MNIST"), ("kmnist", "KMNIST")])
@pytest.mark.parametrize("layout", ["packed", "plain", "torchvision"])
def test_mnist_family_in_three_layouts(tmp_path, name, own, layout):
    folder = tmp_path / own / "raw" if layout == "torchvision" else tmp_path
    written = write_family(folder, packed=layout == "packed")
    data = load_data(DataSettings(data=name, root=str(tmp_path)), (1, 28, 28))
    for part, prefix in ((data.train, "train"), (data.test, "t10k")):
        x, y = written[prefix]
        assert torch.equal(part.images(slice(0, len(part)))[:, 0], torch.tensor(x).float() / 255)
        assert part.labels.tolist() == y.tolist()
        assert part.index.tolist() == list(range(len(y)))
    assert len(data.class_names) == 10


def test_fashion_looks_in_debians_folder(tmp_path, monkeypatch):
    write_family(tmp_path, packed=True)
    monkeypatch.setattr(datasets, "READERS", dict(datasets.READERS))
    reader = datasets._mnist_family("FashionMNIST", datasets._FASHION_CLASSES, tmp_path)
    assert len(reader(DataSettings(data="fashion-mnist")).train.labels) == 7
    gone = datasets._mnist_family("FashionMNIST", datasets._FASHION_CLASSES, tmp_path / "gone")
    with pytest.raises(DataError, match="install Debian's dataset-fashion-mnist or pass --root DIR"):
        gone(DataSettings(data="fashion-mnist"))


def damage_cut(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-200])


def damage_short(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))


def damage_magic(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"hello, I am no such file"))


def damage_plain(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not packed at all")


def damage_count(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(6, np.uint8))))


def damage_label(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(7, 10, np.uint8))))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_cut, "not a whole gzip file"),
        (damage_short, "announces 5488 bytes and holds 5483"),
        (damage_magic, "not an IDX file of bytes with 1 dimensions"),
        (damage_plain, "not a whole gzip file"),
        (damage_count, "holds 7 images and .* 6 labels"),
        (damage_label, "holds the label 10, outside 0 to 9"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, words):
    write_family(tmp_path, packed=True)
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        load_data(DataSettings(data="fashion-mnist", root=str(tmp_path)), (1, 28, 28))


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10", "cifar100"])
def test_missing_and_empty_folders(tmp_path, name):
    with pytest.raises(DataError, match="pass --root DIR"):
        load_data(DataSettings(data=name), (3, 32, 32))
    with pytest.raises(DataError, match=r"There is no folder .*gone; give the one that holds"):
        load_data(DataSettings(data=name, root=str(tmp_path / "gone")), (3, 32, 32))
    with pytest.raises(DataError, match=r"could not be read from .*add --download"):
        load_data(DataSettings(data=name, root=str(tmp_path)), (3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def write_cifar(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(2)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    pixels = {name: rng.integers(0, 256, (2, 3072), np.uint8) for name in names}
    for name, x in pixels.items():
        (folder / name).write_bytes(pickle.dumps({"data": x, "labels": [3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return pixels


def test_cifar_as_torchvision_reads_it(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    pixels = write_cifar(tmp_path)
    # the checksums are those of the real files
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    data = load_data(DataSettings(data="cifar10", root=str(tmp_path)), (3, 32, 32))
    assert (len(data.train), len(data.test), data.class_names[3]) == (10, 2, "class 3")
    expected = torch.tensor(pixels["data_batch_2"][1].reshape(3, 32, 32)).float() / 255
    assert torch.equal(data.train[3][0], expected)
    assert data.train[3][1] == 9


def test_svhn_as_torchvision_reads_it(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (32, 32, 3, 4), np.uint8)
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": np.array([[10], [1], [2], [10]], np.uint8)})
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    data = load_data(DataSettings(data="svhn", root=str(tmp_path)), (3, 32, 32))
    assert data.train.labels.tolist() == [0, 1, 2, 0]  # a 10 in the file is a zero
    assert torch.equal(data.test[2][0], torch.tensor(x[..., 2]).permute(2, 0, 1).float() / 255)


def write_folder(root, parts=("train", "test"), classes=("ant", "bee")):
    for part in parts:
        for shade, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (12, 10), (100 * shade + i, 0, 0)).save(folder / f"{i}.png")


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_image_folder(tmp_path, test_name):
    write_folder(tmp_path, ("train", test_name))
    data = load_data(DataSettings(data=str(tmp_path)), (3, 8, 8))
    assert (data.class_names, data.train.labels.tolist()) == (("ant", "bee"), [0, 0, 1, 1])
    assert data.train[3][0][0].mean().item() == pytest.approx(101 / 255, abs=1e-6)
    first = data.fingerprint
    assert load_data(DataSettings(data=str(tmp_path)), (1, 8, 8)).fingerprint == first
    (tmp_path / "train" / "bee" / "1.png").write_bytes(b"longer or shorter")
    assert load_data(DataSettings(data=str(tmp_path)), (3, 8, 8)).fingerprint != first


def test_image_folders_are_refused_for_what_they_lack(tmp_path):
    def load():
        return load_data(DataSettings(data=str(tmp_path)), (3, 8, 8))

    with pytest.raises(DataError, match=r"no folders train and test \(or val\)"):
        load()
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="train is empty or lacks images"):
        load()
    write_folder(tmp_path, classes=("ant", "bee"))
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=f"name {re.escape(str(tmp_path))}, the folder that holds it"):
        load_data(DataSettings(data=str(tmp_path / "test")), (3, 8, 8))
    with pytest.raises(DataError, match="lacks images in a class"):
        load()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match="train and test differ in the classes cat"):
        load()
