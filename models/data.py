"""Target data: a data set as train pool and test set, fitted to what a network takes, and the rule that draws from it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from .. import UsageError
from .datasets import READERS, Part, Parts, read_folder, read_npz
from .errors import DataError
from .images import ImageSet
from .settings import DataSettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetData:
    """A data set ready for one kind of network."""

    settings: DataSettings
    """How it was asked for."""
    train: ImageSet
    """The pool that subsets are drawn from."""
    test: ImageSet
    class_names: tuple[str, ...]
    name: str
    fingerprint: str
    """sha256 over the pixels (file names and sizes for image folders) and labels of both parts, and a resolution asked for."""


def load_data(settings: DataSettings, input_shape: tuple[int, int, int]) -> TargetData:
    """Read a data set and fit it to a network's input.

    The digits' first 1,000 images are the train pool and the other 797 the test set, numbered as in the one list they
    come in; the other data sets have a test part of their own, numbered from 0 again.

    Args:
        settings: Which data set, and where it lies.
        input_shape: Channels, height and width the network takes.

    Returns:
        Train pool and test set.

    Raises:
        UsageError: The name is neither a data set nor a path.
        DataError: The files are missing, empty or damaged, or labels lie outside the classes.
    """
    path = Path(settings.data).expanduser()
    if settings.data in READERS:
        parts = READERS[settings.data](settings)
    elif path.is_dir():
        parts = read_folder(path)
    elif path.suffix == ".npz":
        if not path.is_file():
            raise DataError(f"There is no file {path}; give the path of an .npz with x and y.")
        parts = read_npz(path)
    elif path.suffix or os.sep in settings.data:
        raise DataError(f"{path} is neither a folder of images nor an .npz file; give one of these or a known name.")
    else:
        raise UsageError(
            f"There is no data set {settings.data!r}; choose {', '.join(READERS)}, a folder or an .npz file."
        )
    _check(settings.data, parts)
    sets = [_image_set(part, input_shape, settings.resolution) for part in (parts.train, parts.test)]
    name = settings.data if settings.data in READERS else path.name
    return TargetData(
        settings=settings,
        train=sets[0],
        test=sets[1],
        class_names=parts.class_names,
        name=name,
        fingerprint=_fingerprint(parts, settings.resolution),
    )


def _image_set(part: Part, input_shape: tuple[int, int, int], resolution: int | None) -> ImageSet:
    return ImageSet(
        pixels=part.pixels, labels=part.labels, index=part.positions, input_shape=input_shape, resolution=resolution
    )


def _check(name: str, parts: Parts) -> None:
    classes = len(parts.class_names)
    for word, part in (("train", parts.train), ("test", parts.test)):
        if len(part.labels) == 0:
            raise DataError(f"The {word} part of {name} is empty; give at least one image.")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= classes:
            odd = low if low < 0 else high
            raise DataError(
                f"The {word} part of {name} holds the label {odd}, outside 0 to {classes - 1}; mend the labels."
            )
    if classes < 2:
        raise DataError(f"{name} has a single class; a classifier needs at least two.")


def _fingerprint(parts: Parts, resolution: int | None) -> str:
    digest = hashlib.sha256()
    for part in (parts.train, parts.test):
        digest.update(part.pixels.fingerprint().encode())
        digest.update(part.labels.numpy().tobytes())
        digest.update(part.positions.numpy().tobytes())
    if resolution is not None:
        digest.update(f"resolution {resolution}".encode())
    return digest.hexdigest()


def paper_seed(i: int) -> int:
    """The seed of the paper's i-th repetition, counted from 0."""
    return 20_000_000 + 100_000 * i


def require_subset(labels: Int[Tensor, " n"], n: int) -> None:
    """Refuse a number of images that cannot be drawn.

    Args:
        labels: True labels of the images to draw from.
        n: Images wanted.

    Raises:
        UsageError: n is below the number of classes or above the number of images.
    """
    classes = len(torch.unique(labels))
    if n < classes:
        raise UsageError(f"{n} images cannot hold all {classes} classes; ask for at least {classes}.")
    if n > len(labels):
        raise UsageError(f"{n} images are asked for and {len(labels)} are there; ask for {len(labels)} or fewer.")


def choose_subset(labels: Int[Tensor, " n"], n: int, seed: int) -> Int[Tensor, " s"]:
    """Draw n images without replacement, with every class among them.

    The images are shuffled. One after another is taken while more places are left than classes are still missing, and
    after that only those of a missing class.

    Args:
        labels: True labels of the images to draw from.
        n: Images wanted.
        seed: Decides the draw, together with the labels.

    Returns:
        Positions in `labels`, ascending, int64.
    """
    require_subset(labels, n)
    classes: list[int] = labels.tolist()
    missing = set(classes)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: list[int] = []
    for position in order:
        label = classes[position]
        if n - len(taken) > len(missing) or label in missing:
            taken.append(position)
            missing.discard(label)
        if len(taken) == n:
            break
    return torch.tensor(sorted(taken))
