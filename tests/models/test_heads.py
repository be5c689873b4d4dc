"""Heads with hidden layers: built, found, put in place, and named in a file's header."""

import json

import pytest
import torch
from torch import nn
from upweight import UsageError
from upweight.models.checkpoints import load_model, save_model
from upweight.models.errors import CheckpointError
from upweight.models.heads import HeadSpec, MLPHead, find_head
from upweight.models.transfer import head_name, resolve_parameters, split, with_new_head
from upweight.models.zoo import ModelSpec, build

DEEP = HeadSpec(hidden=2, width=7, batch_norm=True, dropout=0.25)


def network(architecture="small_resnet"):
    channels = 1 if architecture == "small_resnet" else 3
    return build(
        architecture, num_classes=4, mean=(0.4,) * channels, std=(0.3,) * channels, input_shape=(channels, 32, 32)
    )


def test_layers_come_in_the_order_that_is_asked_for():
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    head = MLPHead(5, 3, DEEP)
    assert [type(layer) for layer in head] == [*kinds, *kinds, nn.Linear]
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(5, 7), (7, 7), (7, 3)]
    assert head[3].p == pytest.approx(0.25)
    assert [type(layer) for layer in MLPHead(5, 3, HeadSpec(hidden=1, width=2))] == [nn.Linear, nn.ReLU, nn.Linear]


def test_head_computes_what_its_layers_say():
    torch.manual_seed(0)
    head = MLPHead(5, 3, HeadSpec(hidden=1, width=2, dropout=0.5)).double().eval().requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64)
    first, last = head[0], head[-1]
    for row, logits in zip(x, head(x), strict=True):
        units = [max(0.0, float(w @ row + b)) for w, b in zip(first.weight, first.bias, strict=True)]
        for j in range(3):
            expected = sum(float(last.weight[j, i]) * u for i, u in enumerate(units)) + float(last.bias[j])
            assert float(logits[j]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("architecture", "place"), [("small_resnet", "head"), ("resnet18", "fc"), ("mobilenet_v2", "classifier.1")]
)
def test_new_head_is_in_the_place_of_the_old_and_survives_a_file(tmp_path, architecture, place):
    model = with_new_head(network(architecture), 6, seed=3, head=DEEP).eval()
    assert head_name(model) == f"net.{place}.8"
    assert resolve_parameters(model, "head") == (f"net.{place}.8.weight", f"net.{place}.8.bias")
    inner = {name for name in resolve_parameters(model, "blocks:0") if not name.startswith(f"net.{place}.")}
    assert not inner
    assert len(resolve_parameters(model, "blocks:0")) == 3 * 2 + 2 * 2
    assert model.spec.head == DEEP
    save_model(tmp_path / "deep.safetensors", model, {})
    back = load_model(tmp_path / "deep.safetensors")
    assert back.spec == model.spec
    x = torch.rand(3, *model.spec.input_shape)
    assert torch.equal(back.model(x), model(x))
    parts = split(back.model, 1)
    assert torch.equal(parts.head(parts.features(parts.frozen(x))), model(x))


def test_width_is_that_of_the_features_unless_given():
    model = with_new_head(network(), 6, seed=3, head=HeadSpec(hidden=1))
    assert model.spec.head == HeadSpec(hidden=1, width=48)
    assert model.net.head[0].weight.shape == (48, 48)


def test_a_head_takes_the_place_of_the_whole_one_before():
    deep = with_new_head(network(), 6, seed=3, head=DEEP)
    for head, kind in ((HeadSpec(), nn.Linear), (HeadSpec(hidden=1, width=2), MLPHead)):
        again = with_new_head(deep, 5, seed=1, head=head)
        assert isinstance(again.net.head, kind)
        assert again(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert torch.equal(
        with_new_head(deep, 5, seed=1).net.head.weight, with_new_head(network(), 5, seed=1).net.head.weight
    )


def test_linear_head_is_not_named_in_a_file_and_a_deep_one_is():
    spec = network().spec
    assert "head" not in spec.to_dict()
    deep = with_new_head(network(), 6, seed=3, head=DEEP).spec
    assert ModelSpec.from_dict(json.loads(json.dumps(deep.to_dict()))) == deep


@pytest.mark.parametrize("head", [{"hidden": -1}, {"hidden": "many"}, {"depth": 3}, "deep", 5, {"dropout": 1.0}])
def test_damaged_head_in_a_header_is_refused(tmp_path, head):
    model = network()
    values = model.spec.to_dict() | {"head": head}

    class Damaged:
        spec = type("Spec", (), {"to_dict": staticmethod(lambda: values)})
        state_dict = staticmethod(model.state_dict)

    save_model(tmp_path / "odd.safetensors", Damaged, {})
    with pytest.raises(CheckpointError, match="damaged header"):
        load_model(tmp_path / "odd.safetensors")


def test_nothing_linear_is_no_head():
    with pytest.raises(UsageError, match="has no linear layer to take as its head"):
        find_head(nn.Conv2d(1, 1, 1))
