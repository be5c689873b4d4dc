"""The networks: sizes, normaliser, what a spec refuses."""

import json

import pytest
import torch
from upweight import UsageError
from upweight.models.transfer import block_names
from upweight.models.zoo import ARCHITECTURES, ModelSpec, Normalizer, build, default_input_shape


def small(**changes):
    return build("small_resnet", **({"num_classes": 10, "mean": (0.3,), "std": (0.4,)} | changes))


def test_small_network_is_as_small_as_promised():
    model = small()
    assert sum(p.numel() for p in model.parameters()) < 250_000
    assert len(block_names(model)) == 9
    shapes = []
    for stage in (model.net.stem, model.net.stage2, model.net.stage3):
        stage.register_forward_hook(lambda _m, _x, out: shapes.append(tuple(out.shape[1:])))
    assert model.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert shapes == [(16, 14, 14), (32, 7, 7), (48, 4, 4)]


def test_normaliser_is_part_of_the_network_and_of_its_state():
    normalizer = Normalizer((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(x[:, 0] - 0.5) / 0.5, (x[:, 1] - 0.25) / 0.25, x[:, 2] / 2], dim=1)
    torch.testing.assert_close(normalizer(x), expected)
    assert {"normalizer.mean", "normalizer.std"} <= small().state_dict().keys()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_name_builds(architecture):
    channels = default_input_shape(architecture)[0]
    with torch.device("meta"):
        model = build(architecture, num_classes=7, mean=(0.5,) * channels, std=(0.5,) * channels)
    assert list(model.parameters())[-1].shape == (7,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.1, 0.2)}, "2 means and 1 deviations for 1 channels"),
        ({"std": (0.0,)}, "must be above 0"),
        ({"std": (float("nan"),)}, "must be above 0"),
        ({"num_classes": 1}, "at least 2"),
        ({"input_shape": (1, 28)}, "channels, height and width"),
    ],
)
def test_spec_refuses_what_cannot_be_built(changes, words):
    with pytest.raises(UsageError, match=words):
        small(**changes)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="small_resnet, resnet18, resnet50, wide_resnet50_2, mobilenet_v2"):
        build("resnet34", num_classes=2, mean=(0.0,), std=(1.0,))


def test_torchvision_networks_take_colour_only():
    with pytest.raises(UsageError, match="takes colour images, not 1 channels"):
        build("resnet18", num_classes=2, mean=(0.0,), std=(1.0,), input_shape=(1, 28, 28))


def test_spec_survives_json():
    spec = small(input_shape=(1, 8, 9)).spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
