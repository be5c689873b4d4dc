"""Readers of the named data sets: each gives the train and the test part as they come."""

from __future__ import annotations

import gzip
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .images import ArrayPixels, FilePixels, Pixels
from .settings import DataSettings

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")

DIGITS_POOL = 1000
"""The digits come in one list: images before this one are trained on, the rest are the test set."""

_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


class Part(NamedTuple):
    """The train or the test images of a data set."""

    pixels: Pixels
    labels: Tensor
    positions: Tensor


class Parts(NamedTuple):
    """A data set as it was read."""

    train: Part
    test: Part
    class_names: tuple[str, ...]


def _part(images: Any, labels: Any) -> Part:
    """Images [n, h, w] or [n, c, h, w] with their labels, numbered from 0."""
    pixels, y = _tensor(images), _tensor(labels).long()
    return Part(ArrayPixels(pixels if pixels.ndim == 4 else pixels[:, None]), y, torch.arange(len(y)))


def _tensor(values: Any) -> Tensor:
    # a copy, as torch wants memory it may write to
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))


def _ten_digits() -> tuple[str, ...]:
    return tuple(str(digit) for digit in range(10))


def read_digits(settings: DataSettings) -> Parts:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey."""
    from sklearn.datasets import load_digits

    found = load_digits()
    whole = _part((found.images / 16).astype(np.float32), found.target)
    cut = DIGITS_POOL
    return Parts(
        Part(whole.pixels, whole.labels[:cut], whole.positions[:cut]),
        Part(whole.pixels, whole.labels[cut:], whole.positions[cut:]),
        _ten_digits(),
    )


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def read_idx(path: Path, ndim: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of unsigned bytes in an IDX file, gzipped or not (torchvision reads only unpacked ones).

    Args:
        path: The file.
        ndim: Dimensions it must have: 3 for images, 1 for labels.

    Returns:
        A read-only view of the file's bytes.

    Raises:
        DataError: The file is not such an array, or is cut off.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again.") from error
    header = 4 * (1 + ndim)
    if data[:3] != b"\x00\x00\x08" or len(data) < header or data[3] != ndim:
        raise DataError(f"{path} is not an IDX file of bytes with {ndim} dimensions; fetch it again.")
    shape = struct.unpack(f">{ndim}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(f"{path} announces {math.prod(shape)} bytes and holds {len(data) - header}; fetch it again.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _bare_idx(folder: Path) -> tuple[Part, Part] | None:
    """The four files of the MNIST family, when they lie in this very folder."""
    found = []
    for prefix in ("train", "t10k"):
        images, labels = (_idx_file(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if images is None or labels is None:
            return None
        x, y = read_idx(images, 3), read_idx(labels, 1)
        if len(x) != len(y):
            raise DataError(f"{images} holds {len(x)} images and {labels} {len(y)} labels; fetch both again.")
        found.append(_part(x, y))
    return found[0], found[1]


def _root(settings: DataSettings, default: Path | None = None) -> Path:
    if settings.root is None:
        if default is not None and default.is_dir():
            return default
        hint = " install Debian's dataset-fashion-mnist or" if default is not None else ""
        raise DataError(
            f"No folder is given for {settings.data};{hint} pass --root DIR, with --download to fetch it there."
        )
    root = Path(settings.root).expanduser()
    if not root.is_dir() and not settings.download:
        raise DataError(f"There is no folder {root}; give the one that holds {settings.data}, or add --download.")
    return root


def _torchvision(settings: DataSettings, root: Path, make: Callable[[Any, bool], Any]) -> tuple[Any, Any]:
    """Train and test part as torchvision reads them from its own layout under the root."""
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the files, nothing a user can mend
            return make(datasets, True), make(datasets, False)
    except Exception as error:  # torchvision raises RuntimeError, OSError, pickle and struct errors on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        mend = "check the network" if settings.download else "give the right --root, or add --download"
        raise DataError(f"{settings.data} could not be read from {root} ({reason}); {mend}.") from error


def _mnist_family(
    torchvision_name: str, names: Sequence[str], default: Path | None = None
) -> Callable[[DataSettings], Parts]:
    def read(settings: DataSettings) -> Parts:
        root = _root(settings, default)
        bare = _bare_idx(root) if root.is_dir() else None
        if bare is not None:
            return Parts(*bare, tuple(names))
        train, test = _torchvision(
            settings,
            root,
            lambda d, part: getattr(d, torchvision_name)(str(root), train=part, download=settings.download),
        )
        return Parts(_part(train.data, train.targets), _part(test.data, test.targets), tuple(names))

    return read


def _read_svhn(settings: DataSettings) -> Parts:
    root = _root(settings)
    train, test = _torchvision(
        settings, root, lambda d, part: d.SVHN(str(root), "train" if part else "test", download=settings.download)
    )
    return Parts(_part(train.data, train.labels), _part(test.data, test.labels), _ten_digits())


def _cifar(torchvision_name: str) -> Callable[[DataSettings], Parts]:
    def read(settings: DataSettings) -> Parts:
        root = _root(settings)
        train, test = _torchvision(
            settings,
            root,
            lambda d, part: getattr(d, torchvision_name)(str(root), train=part, download=settings.download),
        )
        parts = [_part(np.transpose(part.data, (0, 3, 1, 2)), part.targets) for part in (train, test)]
        return Parts(parts[0], parts[1], tuple(train.classes))

    return read


READERS: dict[str, Callable[[DataSettings], Parts]] = {
    "digits": read_digits,
    "fashion-mnist": _mnist_family("FashionMNIST", _FASHION_CLASSES, DEBIAN_FASHION),
    "mnist": _mnist_family("MNIST", _ten_digits()),
    "kmnist": _mnist_family("KMNIST", _KMNIST_CLASSES),
    "svhn": _read_svhn,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
}


def read_folder(root: Path) -> Parts:
    """A folder with train/ and test/ (or val/), each with one folder of images per class.

    Args:
        root: The folder.

    Returns:
        Both parts, their pixels still on disk.

    Raises:
        DataError: A part is missing or empty, or the two parts have different classes.
    """
    from torchvision.datasets import ImageFolder

    test_name = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_name is None:
        part = root.name in ("train", "test", "val") and (root.parent / "train").is_dir()
        mend = f"; name {root.parent}, the folder that holds it" if part else ""
        raise DataError(
            f"{root} has no folders train and test (or val); an image folder needs both, with one folder per class{mend}."
        )
    found = []
    for name in ("train", test_name):
        try:
            found.append(ImageFolder(str(root / name)))
        except FileNotFoundError as error:
            raise DataError(
                f"{root / name} is empty or lacks images in a class ({error}); put one folder per class there."
            ) from error
    train, test = found
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{root}: train and {test_name} differ in the classes {', '.join(odd)}; both need the same folders."
        )
    parts = [
        Part(FilePixels(root, [Path(p) for p, _ in s.samples]), torch.tensor(s.targets), torch.arange(len(s.targets)))
        for s in found
    ]
    return Parts(parts[0], parts[1], tuple(train.classes))


def read_npz(path: Path) -> Parts:
    """An .npz file with x and y, and x_test and y_test or else the same images as test set.

    Args:
        path: The file; x is [n, h, w], [n, c, h, w] or [n, h, w, c], uint8 in 0..255 or floating point in [0, 1].

    Returns:
        Both parts, with the classes 0 to the highest label of y.

    Raises:
        DataError: The file is no such archive, or its content cannot be trained on.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib, numpy and OS errors alike mean: not a whole .npz of plain arrays
        raise DataError(
            f"{path} cannot be read as an .npz of plain arrays ({error}); write it with numpy.savez."
        ) from error
    if not {"x", "y"} <= arrays.keys():
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}; it needs the arrays x and y.")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{path} holds only one of x_test and y_test; give both or neither.")
    train = _part(_checked_pixels(path, "x", arrays["x"]), _checked_labels(path, "y", arrays["y"], len(arrays["x"])))
    test = train
    if "x_test" in arrays:
        labels = _checked_labels(path, "y_test", arrays["y_test"], len(arrays["x_test"]))
        test = _part(_checked_pixels(path, "x_test", arrays["x_test"]), labels)
    return Parts(train, test, tuple(str(c) for c in range(int(train.labels.max()) + 1)))


def _checked_pixels(path: Path, name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Images as [n, c, h, w], of uint8 or float32."""
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = np.moveaxis(x, 3, 1)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.size == 0:
        raise DataError(
            f"{path}: {name} has shape {x.shape}; give images [n, h, w], [n, c, h, w] or [n, h, w, c], c 1 or 3."
        )
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"{path}: {name} is of type {x.dtype}; give uint8 in 0..255 or floating point in [0, 1].")
    if not np.isfinite(x).all():
        raise DataError(f"{path}: {name} holds NaN or infinite pixels; give numbers in [0, 1].")
    if x.min() < 0 or x.max() > 1:
        raise DataError(
            f"{path}: {name} runs from {x.min():.4g} to {x.max():.4g}; scale floating point pixels to [0, 1]."
        )
    return x.astype(np.float32)


def _checked_labels(path: Path, name: str, y: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} is {y.dtype} {y.shape}; give {count} whole numbers, one for each image.")
    if count and y.min() < 0:
        raise DataError(f"{path}: {name} holds the label {y.min()}; labels count from 0.")
    return y
