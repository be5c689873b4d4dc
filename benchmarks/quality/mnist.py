"""The images of the MNIST task, cut from the original files: `python -m benchmarks.quality.mnist FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .tasks import TASKS, TRUTH

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def cut(folder: Path, path: Path) -> None:
    """Write train images drawn at random and the first of the test images, with their labels and positions."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    spec = TASKS["mnist-mlp"].spec
    found = {part: (read_image_file(folder / x), read_label_file(folder / y)) for part, (x, y) in FILES.items()}
    train = np.sort(np.random.default_rng(0).permutation(len(found["train"][1]))[: spec.n])
    index = {"train": train, "test": np.arange(spec.m)}
    images, labels = (np.concatenate([found[part][i][index[part]].numpy() for part in FILES]) for i in (0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=images, labels=labels.astype(np.uint8), index=np.concatenate([*index.values()]))


if __name__ == "__main__":
    cut(Path(sys.argv[1]), TRUTH / "mnist" / "images.npz")
