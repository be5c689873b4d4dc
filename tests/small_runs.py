"""Runs that take a second: a wide residual network of three blocks, 14 images of 8 by 8 pixels, two classes."""

import numpy as np
import torch
from upweight.models.checkpoints import load_model, save_model
from upweight.models.data import load_data
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.models.zoo import build

N = 14


def source(folder):
    """A source whose batch-norm layers are not those it was born with."""
    torch.manual_seed(0)
    model = build("wrn_10_1", num_classes=3, mean=(0.5,) * 3, std=(0.3,) * 3, input_shape=(3, 8, 8)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 8, 8))
    path = folder / "wide.safetensors"
    save_model(path, model, {})
    return load_model(path)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)


def target(folder, shared=()):
    """The images; pairs (test, train) in `shared` are one image."""
    x, x_test = images(N), images(9, seed=1)
    for test, train in shared:
        x_test[test] = x[train]
    np.savez(folder / "few.npz", x=x, y=np.arange(N) % 2, x_test=x_test, y_test=np.arange(9) % 2)
    return load_data(DataSettings(data=str(folder / "few.npz")), (3, 8, 8))


def recipe(**changes):
    plain = {"k": 1, "n": N, "epochs": 2, "batch_size": 5, "learning_rate": 0.05, "seed": 3, "device": "cpu"}
    return FineTuneSettings(**(plain | changes))
