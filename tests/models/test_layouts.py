"""Checkpoints of other projects, each faked in its own layout and saved as that project saves them."""

import re

import pytest
import torch
from layout_files import MEAN, STD, assert_answers, assert_holds, lived, logits, robustness_layout
from torch import nn
from torchvision import models as torchvision_models
from upweight import UsageError
from upweight.models.checkpoints import load_model
from upweight.models.errors import CheckpointError
from upweight.models.layouts import interpret
from upweight.models.transfer import split
from upweight.models.zoo import IMAGENET_MEAN, IMAGENET_STD, build


@pytest.fixture(scope="module")
def nets():
    """Small-bodied names would be better, but the zoo has what it has: two networks, made once."""
    torch.manual_seed(0)
    made = {}
    for name in ("resnet18", "mobilenet_v2"):
        net = build(name, num_classes=6, mean=MEAN, std=STD).net
        made[name] = {key: value.clone() for key, value in net.state_dict().items()}
    return made


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
@pytest.mark.parametrize("new_format", [True, False])
def test_robustness_library(tmp_path, nets, wrapper, new_format):
    path = tmp_path / "resnet18_l2_eps3.ckpt"
    content = {wrapper: robustness_layout(nets["resnet18"]), "optimizer": {"state": {}, "lr": 0.1}, "epoch": 89}
    content |= {"nat_prec1": torch.tensor(57.9), "adv_prec1": 35.5, "schedule": None}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    loaded = load_model(path)
    assert_holds(loaded, nets["resnet18"])
    assert (loaded.spec.architecture, loaded.spec.num_classes, loaded.spec.input_shape) == (
        "resnet18",
        6,
        (3, 224, 224),
    )
    assert loaded.metadata["epoch"] == 89
    assert loaded.metadata["nat_prec1"] == pytest.approx(57.9)
    found = loaded.metadata["found"]
    for words in (
        f"weights under '{wrapper}'",
        "of the attacker's copy ignored",
        "normaliser from the file",
        "resnet18 with 6 classes",
    ):
        assert words in found


def test_twice_wrapped_and_without_counters(tmp_path, nets):
    path = tmp_path / "mobilenet.ckpt"
    layout = robustness_layout(nets["mobilenet_v2"], prefix="module.model.model.", counters=False, attacker=False)
    torch.save({"model": layout}, path)
    loaded = load_model(path, input_shape=(3, 64, 64))
    assert_holds(loaded, nets["mobilenet_v2"])
    assert loaded.spec.input_shape == (3, 64, 64)
    assert "prefix model.model. taken off" in loaded.metadata["found"]
    assert "52 batch-norm layers without num_batches_tracked" in loaded.metadata["found"]
    assert loaded.model.net.features[0][1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["mnasnet1_0", "shufflenet_v2_x1_0", "densenet161"])
def test_other_families_wrapped_as_microsofts_are(tmp_path, name):
    """Torchvision's own network under the names that a module around it, the attacker and the data-parallel one put before."""
    torch.manual_seed(0)
    theirs = lived(getattr(torchvision_models, name)(weights=None, num_classes=1000 if name == "mnasnet1_0" else 6))
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    layout = robustness_layout(state, prefix="module.model.model.", attacker=name != "densenet161")
    path = tmp_path / f"{name}_l2_eps3.ckpt"
    torch.save({"model": layout, "epoch": 89, "schedule": None}, path)
    loaded = load_model(path, input_shape=(3, 64, 64))
    assert (loaded.spec.architecture, loaded.spec.input_shape) == (name, (3, 64, 64))
    assert "prefix model.model. taken off" in loaded.metadata["found"]
    assert_holds(loaded, state)
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert_answers(loaded, x, logits(theirs, x))
    parts = split(loaded.model, 0)
    with torch.no_grad():
        assert torch.equal(parts.trained(parts.frozen(x)), loaded.model(x))


def test_vgg_is_told_by_names_and_shapes():
    with torch.device("meta"):
        theirs = torchvision_models.vgg16_bn(weights=None)
    state = {key: torch.zeros(()).expand(value.shape) for key, value in theirs.state_dict().items()}  # takes no memory
    found = interpret(
        {"model": robustness_layout(state, prefix="module.model.model.", attacker=False)}, "vgg16_bn.ckpt"
    )
    assert (found.spec.architecture, found.spec.num_classes, found.spec.input_shape) == (
        "vgg16_bn",
        1000,
        (3, 224, 224),
    )
    assert found.spec.mean == MEAN and len(found.tensors) == len(state) + 2


def test_old_names_of_dense_layers(tmp_path):
    with torch.device("meta"):
        theirs = torchvision_models.densenet161(weights=None)
    state = {key: torch.zeros(()).expand(value.shape) for key, value in theirs.state_dict().items()}
    old = {re.sub(r"(denselayer\d+\.(norm|conv))([12])\.", r"\1.\3.", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = interpret(old, "densenet161-8d451a50.pth")
    assert found.spec.architecture == "densenet161" and found.spec.mean == IMAGENET_MEAN
    assert {key.removeprefix("net.") for key in found.tensors if key.startswith("net.")} == state.keys()


def imagenet_sized(state):
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def test_torchvision_state_gets_imagenets_normaliser_and_says_so(tmp_path, nets):
    path = tmp_path / "resnet18-5c106cde.pth"
    torch.save(imagenet_sized(nets["resnet18"]), path)
    loaded = load_model(path)
    assert_holds(loaded, imagenet_sized(nets["resnet18"]), IMAGENET_MEAN, IMAGENET_STD)
    assert "no normaliser in the file, ImageNet's is assumed" in loaded.metadata["found"]


def test_state_without_normaliser_needs_one_given(tmp_path, nets):
    path = tmp_path / "plain.pth"
    torch.save(nets["resnet18"], path)
    with pytest.raises(CheckpointError, match="has no normaliser; give the mean and std it was trained with"):
        load_model(path)
    with pytest.raises(UsageError, match="Only one of mean and std"):
        load_model(path, mean=MEAN)
    assert_holds(load_model(path, mean=MEAN, std=STD), nets["resnet18"])


def test_normaliser_is_not_applied_twice(tmp_path, nets):
    path = tmp_path / "has.pt"
    torch.save({"model": robustness_layout(nets["resnet18"])}, path)
    with pytest.raises(UsageError, match="has its own normaliser; leave mean and std out"):
        load_model(path, mean=MEAN, std=STD)


def test_plain_safetensors_of_a_small_network(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = build("small_resnet", num_classes=4, mean=(0.0,), std=(1.0,)).net.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    loaded = load_model(tmp_path / "plain.safetensors", mean=(0.2,), std=(0.3,))
    assert_holds(loaded, state, (0.2,), (0.3,))
    assert loaded.spec.input_shape == (1, 28, 28)


def test_another_architecture_is_refused_with_the_first_difference(tmp_path, nets):
    path = tmp_path / "r18.pth"
    torch.save(nets["resnet18"], path)
    with pytest.raises(
        CheckpointError, match=r"does not fit resnet50 \(.* is .* and should be .*\); name the architecture"
    ):
        load_model(path, architecture="resnet50", mean=MEAN, std=STD)
    with pytest.raises(UsageError, match="no architecture 'resnet34'"):
        load_model(path, architecture="resnet34")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "layer2.0.conv1.weight"},
            r"does not fit any of small_resnet.*resnet18 is closest, and there layer2\.0\.conv1\.weight is absent and should be",
        ),
        (
            lambda s: s | {"layer5.0.conv1.weight": torch.zeros(1)},
            r"resnet18 is closest, and there layer5\.0\.conv1\.weight is \(1,\) and should be absent",
        ),
        (lambda s: s | {"fc.0.weight": torch.zeros(2, 2)}, r"fc\.0\.weight is \(2, 2\) and should be absent"),
        (
            lambda s: s | {"layer1.0.shortcut.0.weight": torch.zeros(1), "linear.weight": torch.zeros(1)},
            r"layer1\.0\.shortcut\.0\.weight is \(1,\) and should be absent",
        ),
        (lambda s: {"block1.layer.0.conv1.weight": torch.zeros(1)}, r"it holds block1\.layer\.0\.conv1\.weight\)"),
        (
            lambda s: {f"{i}.weight": torch.zeros(2, 2) for i in range(5)},
            r"it holds 0\.weight, 1\.weight, 2\.weight and 2 others",
        ),
        (lambda s: {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}, "it holds"),
        (lambda s: s | {"fc.weight_orig": torch.zeros(1)}, r"spectrally normalised weights \(fc\.weight_orig\)"),
        (lambda s: s | {"fc.bias": torch.full((6,), float("nan"))}, r"NaN or infinite numbers in net\.fc\.bias"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, nets, change, words):
    path = tmp_path / "odd.pth"
    torch.save(change(nets["resnet18"]), path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path, mean=MEAN, std=STD)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {}, {"model": {}}, {3: torch.zeros(1)}, torch.zeros(3)])
def test_pickles_without_weights_are_refused(tmp_path, content):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(path)


# ---- Microsoft's ---------------------------------------------------------------------------------------------------------


def test_twice_wrapped_network_with_hidden_layers_in_its_head(tmp_path):
    from torchvision.models import resnet18

    net = resnet18(num_classes=4)
    net.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    lived(net)
    path = tmp_path / "resnet18_linf_eps0.5.ckpt"
    torch.save({"model": robustness_layout(net.state_dict(), prefix="module.model.model."), "epoch": 3}, path)
    loaded = load_model(path, input_shape=(3, 32, 32))
    assert (loaded.spec.architecture, loaded.spec.head.hidden, loaded.spec.head.width) == ("resnet18", 2, 512)
    assert "resnet18 with 4 classes and 2 hidden layers in its head" in loaded.metadata["found"]
    assert loaded.name == "resnet18_linf_eps0.5"
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_answers(loaded, x, logits(net, x))


@pytest.mark.parametrize("architecture", ["wide_resnet50_4", "resnext50_32x4d"])
def test_other_residual_networks_are_told_apart(tmp_path, architecture):
    with torch.device("meta"):
        shapes = build(architecture, num_classes=3, mean=MEAN, std=STD).net.state_dict()
    torch.save(
        {"model": {f"module.model.{k}": torch.zeros(v.shape, dtype=v.dtype) for k, v in shapes.items()}},
        tmp_path / "w.ckpt",
    )
    assert load_model(tmp_path / "w.ckpt", mean=MEAN, std=STD).spec.architecture == architecture
