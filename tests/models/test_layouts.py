"""Checkpoints of other projects, each faked in its own layout and saved as that project saves them."""

import re
import sys
import types
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models as torchvision_models
from upweight import UsageError
from upweight.models.checkpoints import load_model
from upweight.models.errors import CheckpointError
from upweight.models.layouts import interpret
from upweight.models.transfer import split
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


# ---- networks as their own projects write them, none of them ours --------------------------------------------------------


class TheirWideBlock(nn.Module):
    """As CARTL's, after xternalz's: `x` itself is rectified where the width changes."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.LeakyReLU(0.1, inplace=True)
        self.conv1 = nn.Conv2d(inner, outer, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu2 = nn.LeakyReLU(0.1, inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, kernel_size=3, stride=1, padding=1, bias=False)
        self.equal = inner == outer
        self.convShortcut = None if self.equal else nn.Conv2d(inner, outer, kernel_size=1, stride=stride, bias=False)

    def forward(self, x):
        if not self.equal:
            x = self.relu1(self.bn1(x))
        else:
            out = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(out if self.equal else x))))
        return torch.add(x if self.equal else self.convShortcut(x), out)


class TheirStage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class TheirWide(nn.Module):
    def __init__(self, n, width, classes):
        super().__init__()
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, stride=1, padding=1, bias=False)
        for s in (1, 2, 3):
            first = TheirWideBlock(sizes[s - 1], sizes[s], 1 if s == 1 else 2)
            setattr(
                self, f"block{s}", TheirStage([first, *(TheirWideBlock(sizes[s], sizes[s], 1) for _ in range(n - 1))])
            )
        self.bn1 = nn.BatchNorm2d(sizes[3])
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        self.fc = nn.Linear(sizes[3], classes)

    def forward(self, x):
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = functional.avg_pool2d(self.relu(self.bn1(out)), 8)
        return self.fc(out.view(len(out), -1))


class TheirCifarBlock(nn.Module):
    """As the robustness library's for CIFAR."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, outer, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return functional.relu(out)


class TheirCifar(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inner = 64
        for stage, outer in enumerate((64, 128, 256, 512), start=1):
            blocks = TheirCifarBlock(inner, outer, 1 if stage == 1 else 2), TheirCifarBlock(outer, outer, 1)
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inner = outer
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(functional.avg_pool2d(out, 4).view(len(out), -1))


def lived(model, seed=0):
    """Batch-norm statistics and scales other than those of birth."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def logits(net, x, mean=MEAN, std=STD):
    """What the project's own network answers to normalised pixels."""
    shape = (3, 1, 1)
    with torch.no_grad():
        return net((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))


def assert_answers(loaded, x, expected):
    with torch.no_grad():
        found = loaded.model(x)
    assert expected.std() > 1e-3
    # float32, some ten layers deep; and pooling by windows adds in another order than pooling to one pixel
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class ByDill:
    """Pickled, it names globals of dill, as the schedules in old files of the robustness library do."""

    def __reduce__(self):
        return _create_function, ("code",)


def _create_function(*_):
    raise AssertionError("a file made this run")


_create_function.__module__ = "dill._dill"


@pytest.fixture
def dill(monkeypatch):
    """Let pickle find that global while a file is written, and take it away again before it is read."""
    module = types.ModuleType("dill._dill")
    module._create_function = _create_function
    monkeypatch.setitem(sys.modules, "dill", types.ModuleType("dill"))
    monkeypatch.setitem(sys.modules, "dill._dill", module)
    return lambda: [monkeypatch.delitem(sys.modules, name) for name in ("dill", "dill._dill")]


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("dilled", [True, False])
def test_cifar_networks_of_the_robustness_library(tmp_path, pictures, dill, new_format, dilled):
    net = lived(TheirCifar(10))
    path = tmp_path / "cifar_l2_1_0.pt"
    content = {"model": robustness_layout(net.state_dict(), counters=not dilled), "epoch": 149, "amp": None}
    content["schedule"] = ByDill() if dilled else None
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    dill()
    loaded = load_model(path)
    assert (loaded.spec.architecture, loaded.spec.num_classes, loaded.spec.input_shape) == (
        "cifar_resnet18",
        10,
        (3, 32, 32),
    )
    assert_answers(loaded, pictures, logits(net, pictures))
    found = loaded.metadata["found"]
    assert "normaliser from the file" in found
    assert ("dill._dill._create_function" in found) == dilled
    assert ("runs nothing a pickle names" in found) == dilled
    assert ("20 batch-norm layers without num_batches_tracked" in found) == dilled
    assert len(split(loaded.model, 8).trained) > 8


def test_deep_cifar_network_is_told_from_the_shallow_one(tmp_path):
    net = build("cifar_resnet50", num_classes=10, mean=MEAN, std=STD).net
    torch.save({"state_dict": robustness_layout(net.state_dict(), attacker=False)}, tmp_path / "cifar_nat.pt")
    loaded = load_model(tmp_path / "cifar_nat.pt")
    assert loaded.spec.architecture == "cifar_resnet50"
    assert_holds(loaded, net.state_dict())


@pytest.mark.parametrize("wrapped", [None, "model_weights"])
@pytest.mark.parametrize("new_format", [True, False])
def test_raw_states_of_cartl(tmp_path, pictures, wrapped, new_format):
    net = lived(TheirWide(2, 1, 20))
    path = tmp_path / ("cartl_wrn16_cifar100_8_0.01-best" + ("_robust" if wrapped is None else ".pth"))
    content = {wrapped: net.state_dict(), "current_epoch": 7, "best_acc": 0.5} if wrapped else net.state_dict()
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"no normaliser; give the mean and std .*0\.5071 0\.4865 0\.4409"):
        load_model(path)
    loaded = load_model(path, mean=MEAN, std=STD)
    assert (loaded.spec.architecture, loaded.spec.num_classes) == ("wrn_16_1", 20)
    assert_answers(loaded, pictures, logits(net, pictures))
    assert loaded.metadata.get("current_epoch") == (7 if wrapped else None)
    assert loaded.name == (
        "cartl_wrn16_cifar100_8_0.01-best_robust" if wrapped is None else "cartl_wrn16_cifar100_8_0.01-best"
    )


def test_the_wide_networks_of_the_papers_are_known_by_their_shapes(tmp_path):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in TheirWide(4, 4, 10).state_dict().items()}
    torch.save({k: torch.zeros(shape) for k, shape in shapes.items()}, tmp_path / "wrn")
    assert load_model(tmp_path / "wrn", mean=MEAN, std=STD).spec.architecture == "wrn_28_4"


# ---- spectral normalisation ----------------------------------------------------------------------------------------------


def normalised(beta, k=2, seed=0):
    """A wide network whose last k blocks and head use beta W / sigma, and its state as torch writes such layers."""
    net = lived(TheirWide(1, 1, 5), seed)
    layers = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    chosen = [name for name in layers if name.split(".")[0] in ("fc", "block3", "block2")[: k + 1]]
    draw = torch.Generator().manual_seed(seed)
    state = OrderedDict(net.state_dict())
    for name in chosen:
        weight = state.pop(f"{name}.weight")
        W = weight.reshape(len(weight), -1)
        v = functional.normalize(torch.randn(W.shape[1], generator=draw), dim=0)
        for _ in range(2):  # far from converged, so that u^T W v is not the spectral norm
            u = functional.normalize(W @ v, dim=0)
            v = functional.normalize(W.T @ u, dim=0)
        state |= {f"{name}.weight_orig": weight, f"{name}.weight_u": u, f"{name}.weight_v": v}
        net.get_submodule(name).weight.data = beta * weight / torch.dot(u, W @ v)
    return net, state, chosen


@pytest.mark.parametrize("beta", [1.0, 0.6, 0.4])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_spectrally_normalised_weights_are_folded(tmp_path, pictures, beta, prefix):
    net, state, chosen = normalised(beta)
    path = tmp_path / "sntl_wrn_cifar10_4-best"
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, path, _use_new_zipfile_serialization=False)
    loaded = load_model(path, mean=MEAN, std=STD, beta=beta)
    assert_answers(loaded, pictures, logits(net, pictures))
    assert f"spectral normalisation of {len(chosen)} weights folded in with beta {beta:g}" in loaded.metadata["found"]
    assert set(loaded.model.net.state_dict()) == set(net.state_dict())
    other = load_model(path, mean=MEAN, std=STD, beta=2 * beta)
    torch.testing.assert_close(other.model.net.fc.weight, 2 * loaded.model.net.fc.weight)


def test_folding_is_what_torchs_own_normalisation_computes(tmp_path, pictures):
    net = lived(TheirWide(1, 1, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch would rather have another function used
        for name in ("fc", "block3.layer.0.conv1", "block3.layer.0.convShortcut"):
            nn.utils.spectral_norm(net.get_submodule(name))
    net.train()(pictures)  # one power iteration, as in training
    net.eval()
    torch.save(net.state_dict(), tmp_path / "old")
    assert_answers(load_model(tmp_path / "old", mean=MEAN, std=STD, beta=1.0), pictures, logits(net, pictures))


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (
            {},
            {},
            CheckpointError,
            r"\(block2\.layer\.0\.conv1\.weight_orig, .* and 5 others\).*give beta \(CARTL's are 1, 0\.6",
        ),
        ({}, {"beta": 0.0}, UsageError, "beta is 0.0; give the positive factor"),
        ({}, {"beta": float("nan")}, UsageError, "beta is nan"),
        ({"fc.weight_u": None}, {"beta": 1.0}, CheckpointError, r"lacks fc\.weight_u; give"),
        ({"fc.weight": torch.zeros(5, 64)}, {"beta": 1.0}, CheckpointError, r"has fc\.weight beside fc\.weight_orig"),
        (
            {"fc.weight_v": torch.zeros(3)},
            {"beta": 1.0},
            CheckpointError,
            r"fc\.weight_v of shape \(3,\) for fc\.weight_orig",
        ),
        ({"fc.weight_orig": torch.zeros(5)}, {"beta": 1.0}, CheckpointError, r"fc\.weight_orig of shape \(5,\)"),
        ({"fc.weight_orig": torch.zeros(5, 64)}, {"beta": 1.0}, CheckpointError, "spectral norm 0.0"),
        ({"fc.weight_u": torch.full((5,), torch.nan)}, {"beta": 1.0}, CheckpointError, "spectral norm nan"),
    ],
)
def test_what_cannot_be_folded_is_refused_and_named(tmp_path, change, options, error, words):
    _, state, _ = normalised(0.6)
    state = {k: v for k, v in (state | change).items() if v is not None}
    torch.save(state, tmp_path / "neft")
    with pytest.raises(error, match=words) as caught:
        load_model(tmp_path / "neft", mean=MEAN, std=STD, **options)
    assert str(caught.value).count(". ") == 0  # one sentence


def test_a_factor_that_nothing_needs_is_refused(tmp_path, nets):
    torch.save(nets["resnet18"], tmp_path / "plain.pth")
    with pytest.raises(UsageError, match="holds no spectrally normalised weights; leave beta out"):
        load_model(tmp_path / "plain.pth", mean=MEAN, std=STD, beta=0.6)
    with pytest.raises(UsageError, match="says itself what it holds; leave beta out"):
        load_model("natural", beta=0.6)


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
