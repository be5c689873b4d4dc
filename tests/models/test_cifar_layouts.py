"""Networks for CIFAR as their own projects write them, CARTL's and its spectrally normalised weights among them."""

import sys
import types
import warnings
from collections import OrderedDict

import pytest
import torch
from layout_files import MEAN, STD, assert_answers, assert_holds, lived, logits, robustness_layout
from torch import nn
from torch.nn import functional
from upweight import UsageError
from upweight.models.checkpoints import load_model
from upweight.models.errors import CheckpointError
from upweight.models.transfer import split
from upweight.models.zoo import build

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


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))


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


def test_a_factor_that_nothing_needs_is_refused(tmp_path):
    net = build("resnet18", num_classes=6, mean=MEAN, std=STD).net
    torch.save(net.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UsageError, match="holds no spectrally normalised weights; leave beta out"):
        load_model(tmp_path / "plain.pth", mean=MEAN, std=STD, beta=0.6)
    with pytest.raises(UsageError, match="says itself what it holds; leave beta out"):
        load_model("natural", beta=0.6)
