"""Checkpoints of other projects, each faked in its own layout and saved as that project saves them."""

import pytest
import torch
from upweight import UsageError
from upweight.models.checkpoints import load_model
from upweight.models.errors import CheckpointError
from upweight.models.zoo import IMAGENET_MEAN, IMAGENET_STD, build

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def nets():
    """Small-bodied names would be better, but the zoo has what it has: two networks, made once."""
    torch.manual_seed(0)
    made = {}
    for name in ("resnet18", "mobilenet_v2"):
        net = build(name, num_classes=6, mean=MEAN, std=STD).net
        made[name] = {key: value.clone() for key, value in net.state_dict().items()}
    return made


def robustness_layout(state, *, prefix="module.model.", counters=True, attacker=True):
    kept = {k: v for k, v in state.items() if counters or not k.endswith("num_batches_tracked")}
    normaliser = {"new_mean": torch.tensor(MEAN).view(3, 1, 1), "new_std": torch.tensor(STD).view(3, 1, 1)}
    layout = {f"module.normalizer.{k}": v for k, v in normaliser.items()}
    layout |= {f"{prefix}{k}": v for k, v in kept.items()}
    if attacker:
        layout |= {f"module.attacker.normalize.{k}": v for k, v in normaliser.items()}
        layout |= {f"module.attacker.model.{k}": v + 1 if v.is_floating_point() else v for k, v in kept.items()}
    return layout


def assert_holds(loaded, state, mean=MEAN, std=STD):
    own = loaded.model.net.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(own[key], value), key
    torch.testing.assert_close(loaded.model.normalizer.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(loaded.model.normalizer.std.flatten(), torch.tensor(std))
    assert not loaded.model.training


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
        (lambda s: {k: v for k, v in s.items() if k != "layer2.0.conv1.weight"}, "does not fit any of small_resnet"),
        (lambda s: s | {"layer5.0.conv1.weight": torch.zeros(1)}, "does not fit any of small_resnet"),
        (lambda s: s | {"fc.0.weight": torch.zeros(2, 2)}, "head with hidden layers"),
        (
            lambda s: s | {"layer1.0.shortcut.0.weight": torch.zeros(1), "linear.weight": torch.zeros(1)},
            "CIFAR network",
        ),
        (lambda s: {"block1.layer.0.conv1.weight": torch.zeros(1)}, "wide ResNet for small images"),
        (lambda s: s | {"fc.weight_orig": torch.zeros(1)}, "spectrally normalised weights"),
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
