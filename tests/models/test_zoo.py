"""The networks: sizes, normaliser, what a spec refuses."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional
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
    with pytest.raises(UsageError, match=r"small_resnet, .*resnet18, resnet50, wide_resnet50_2, mobilenet_v2"):
        build("resnet34", num_classes=2, mean=(0.0,), std=(1.0,))


def test_torchvision_networks_take_colour_only():
    with pytest.raises(UsageError, match="takes colour images, not 1 channels"):
        build("resnet18", num_classes=2, mean=(0.0,), std=(1.0,), input_shape=(1, 28, 28))


def test_spec_survives_json():
    spec = small(input_shape=(1, 8, 9)).spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def filled(model, seed=0):
    """Every number of the state drawn anew, batch-norm statistics too, so that no layer is an identity."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
            elif value.is_floating_point() and not name.startswith("normalizer"):
                value.copy_(torch.randn(value.shape, generator=draw) / max(value[0].numel(), 1) ** 0.5)
    return model.double().eval()


def normed(state, name, x):
    names = ("running_mean", "running_var", "weight", "bias")
    return functional.batch_norm(x, *(state[f"{name}.{part}"] for part in names), training=False, eps=1e-5)


def wide_reference(state, x, stages, n):
    """A wide residual network as functions of its weights, written from the papers and not from our modules."""

    def rectify(value):
        return torch.where(value > 0, value, 0.1 * value)

    y = functional.conv2d(x, state["conv1.weight"], padding=1)
    for s, i in [(s, i) for s in stages for i in range(n)]:
        at, stride = f"block{s}.layer.{i}", 2 if s > 1 and i == 0 else 1
        start = rectify(normed(state, f"{at}.bn1", y))
        inner = functional.conv2d(start, state[f"{at}.conv1.weight"], stride=stride, padding=1)
        inner = functional.conv2d(rectify(normed(state, f"{at}.bn2", inner)), state[f"{at}.conv2.weight"], padding=1)
        short = state.get(f"{at}.convShortcut.weight")
        y = inner + (y if short is None else functional.conv2d(start, short, stride=stride))
    y = rectify(normed(state, "bn1", y)).mean((2, 3))
    return y @ state["fc.weight"].T + state["fc.bias"]


def cifar_reference(state, x, stages):
    """A residual network of the robustness library for CIFAR, likewise; its blocks have two or three convolutions."""
    y = functional.conv2d(x, state["conv1.weight"], padding=1)
    y = normed(state, "bn1", y).relu()
    for s, i in [(s, i) for s, count in enumerate(stages, start=1) for i in range(count)]:
        at, stride = f"layer{s}.{i}", 2 if s > 1 and i == 0 else 1
        three = f"{at}.conv3.weight" in state
        inner = functional.conv2d(y, state[f"{at}.conv1.weight"], **({} if three else {"stride": stride, "padding": 1}))
        inner = normed(state, f"{at}.bn1", inner).relu()
        second = {"stride": stride, "padding": 1} if three else {"padding": 1}
        inner = normed(state, f"{at}.bn2", functional.conv2d(inner, state[f"{at}.conv2.weight"], **second))
        if three:
            inner = normed(state, f"{at}.bn3", functional.conv2d(inner.relu(), state[f"{at}.conv3.weight"]))
        if (short := state.get(f"{at}.shortcut.0.weight")) is not None:
            y = normed(state, f"{at}.shortcut.1", functional.conv2d(y, short, stride=stride))
        y = (inner + y).relu()
    return functional.avg_pool2d(y, 4).flatten(1) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(
    ("architecture", "reference"),
    [
        ("wrn_10_1", lambda state, x: wide_reference(state, x, (1, 2, 3), 1)),
        ("wrn_16_1", lambda state, x: wide_reference(state, x, (1, 2, 3), 2)),
        ("cifar_resnet18", lambda state, x: cifar_reference(state, x, (2, 2, 2, 2))),
        ("cifar_resnet50", lambda state, x: cifar_reference(state, x, (3, 4, 6, 3))),
    ],
)
def test_networks_for_small_images_compute_what_their_sources_say(architecture, reference):
    model = filled(build(architecture, num_classes=5, mean=(0.0,) * 3, std=(1.0,) * 3))
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, expected = model(x), reference(model.net.state_dict(), x)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)


def test_wide_networks_have_the_sizes_of_the_paper():
    # 5.8 and 46.2 million, as the papers on adversarial training give them
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(name, num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3).parameters())
            for name in ("wrn_28_4", "wrn_34_10", "wrn_32_10", "wrn_16_1")
        }
    assert round(sizes["wrn_28_4"] / 1e5) == 58
    assert round(sizes["wrn_34_10"] / 1e5) == 462
    assert sizes["wrn_32_10"] == sizes["wrn_34_10"]  # two names of one network
    assert sizes["wrn_16_1"] < 200_000


def test_wide_networks_take_grey_images_and_begin_with_the_variance_of_the_paper():
    torch.manual_seed(0)
    model = build("wrn_16_1", num_classes=10, mean=(0.3,), std=(0.4,), input_shape=(1, 28, 28))
    assert model.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
