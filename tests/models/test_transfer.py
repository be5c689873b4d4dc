"""The last k blocks mean the same everywhere, and cutting a network changes nothing about it."""

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import vgg
from upweight import UsageError
from upweight.models.transfer import block_names, chain, head_name, resolve_parameters, split, with_new_head
from upweight.models.zoo import ARCHITECTURES, SMALL, build

BLOCKS = {"small_resnet": 9, "resnet18": 8, "resnet50": 16, "wide_resnet50_2": 16, "mobilenet_v2": 17}
BLOCKS |= {
    "wide_resnet50_4": 16,
    "resnext50_32x4d": 16,
    "cifar_resnet18": 8,
    "cifar_resnet34": 16,
    "cifar_resnet50": 16,
}
BLOCKS |= dict.fromkeys(SMALL, 9)
BLOCKS |= {"densenet161": 4, "mnasnet1_0": 16, "shufflenet_v2_x1_0": 16, "vgg16_bn": 0}
BLOCKS |= {"wrn_10_1": 3, "wrn_16_1": 6, "wrn_28_4": 12, "wrn_34_10": 15, "wrn_32_10": 15}


def network(architecture, device="cpu"):
    channels = 1 if architecture in SMALL else 3
    with torch.device(device):
        return build(
            architecture,
            num_classes=5,
            mean=(0.4,) * channels,
            std=(0.3,) * channels,
            input_shape=(channels, 32, 32),
        )


@pytest.mark.parametrize(
    "architecture",
    [
        "small_resnet",
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "wrn_10_1",
        "wrn_16_1",
        "cifar_resnet18",
        "cifar_resnet50",
        "densenet161",
        "mnasnet1_0",
        "shufflenet_v2_x1_0",
    ],
)
def test_chain_composes_to_the_forward_pass(architecture):
    torch.manual_seed(0)
    model = network(architecture).eval()
    x = torch.rand(2, *model.spec.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        assert expected.isfinite().all()
        assert not torch.equal(expected[0], expected[1])
        composed = x
        for _, module in chain(model):
            composed = module.eval()(composed)
        assert torch.equal(composed, expected)
        for k in (0, 1, BLOCKS[architecture]):
            parts = split(model, k)
            assert torch.equal(parts.trained.eval()(parts.frozen.eval()(x)), expected)


def test_vgg_composes_and_its_head_is_its_last_layer():
    torch.manual_seed(0)
    layers = vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):  # its own hidden layers are too large for a test
        model = torchvision_models.VGG(layers, num_classes=5, init_weights=False)
    hidden = nn.Linear(16 * 49, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 8), nn.ReLU(True), nn.Dropout()
    model.classifier = nn.Sequential(*hidden, nn.Linear(8, 5))
    model.eval()
    x = torch.rand(3, 3, 30, 30, generator=torch.Generator().manual_seed(1))
    parts = split(model, 0)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(parts.trained.eval()(parts.frozen.eval()(x)), expected)
        assert parts.frozen(x).shape == (3, 8) and parts.frozen(x).min() >= 0  # behind the last rectifier
    assert parts.parameters == ("classifier.6.weight", "classifier.6.bias")
    assert len(split(model, "all").parameters) == len(list(model.parameters()))
    assert split(model, 1, counting="cartl").parameters == parts.parameters
    with pytest.raises(UsageError, match="has 1 blocks as CARTL counts them"):
        split(model, 2, counting="cartl")


def test_families_are_cut_where_their_blocks_begin():
    dense = network("densenet161", "meta")
    last = modules_of(split(dense, 1).parameters)
    assert last == {"features.denseblock4", "features.norm5", "classifier.weight", "classifier.bias"}
    assert modules_of(split(dense, 2).parameters) == last | {"features.denseblock3", "features.transition3"}
    assert modules_of(split(dense, 2, counting="cartl").parameters) == last - {"features.denseblock4"}
    mobile = network("mnasnet1_0", "meta")
    assert modules_of(split(mobile, 1).parameters) == {"layers.13", "layers.14", "layers.15", "classifier.1"}
    assert block_names(mobile)[-2:] == ["net.layers.12.3", "net.layers.13.0"]
    shuffled = network("shufflenet_v2_x1_0", "meta")
    assert modules_of(split(shuffled, 1).parameters) == {"stage4.3", "conv5.0", "conv5.1", "fc.weight", "fc.bias"}
    assert not any(isinstance(module, nn.Dropout) and module.inplace for module in mobile.modules())


def test_wide_resnet_is_chained_as_its_narrow_twin():
    wide, narrow = (chain(network(name, "meta")) for name in ("wide_resnet50_2", "resnet50"))
    assert [(name, type(module)) for name, module in wide] == [(name, type(module)) for name, module in narrow]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_split_covers_every_parameter_once(architecture):
    model = network(architecture, "meta")
    names = [name for name, _ in model.named_parameters()]
    for k in range(BLOCKS[architecture] + 1):
        parts = split(model, k)
        frozen = {id(p) for p in parts.frozen.parameters()}
        trained = {id(p) for p in parts.trained.parameters()}
        assert not frozen & trained
        assert len(frozen) + len(trained) == len(names)
        assert {id(model.get_parameter(name)) for name in parts.parameters} == trained
        assert list(parts.parameters) == [name for name in names if name in parts.parameters]


def modules_of(names):
    return {".".join(name.split(".")[1:3]) for name in names}


def test_resnet50_blocks_are_those_of_the_paper():
    model = network("resnet50", "meta")
    head = {"fc.weight", "fc.bias"}
    assert modules_of(split(model, 0).parameters) == head
    assert modules_of(split(model, 1).parameters) == {"layer4.2"} | head
    assert modules_of(split(model, 3).parameters) == {f"layer4.{i}" for i in range(3)} | head
    nine = {f"layer3.{i}" for i in range(6)} | {f"layer4.{i}" for i in range(3)} | head
    assert modules_of(split(model, 9).parameters) == nine


def test_mobilenet_trains_its_last_convolution_with_its_last_block():
    model = network("mobilenet_v2", "meta")
    assert block_names(model)[0] == "net.features.1"
    assert block_names(model)[-1] == "net.features.17"
    assert modules_of(split(model, 0).parameters) == {"classifier.1"}
    assert modules_of(split(model, 1).parameters) == {"features.17", "features.18", "classifier.1"}


def test_dropout_before_mobilenets_head_is_trained_with_it():
    parts = split(network("mobilenet_v2", "meta"), 0)
    assert [type(m) for m in parts.trained] == [nn.Dropout, nn.Linear]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("k", [-1, 99])
def test_k_beyond_the_blocks_is_refused(architecture, k):
    model = network(architecture, "meta")
    with pytest.raises(UsageError, match=f"k is {k}, but this network has {BLOCKS[architecture]} residual blocks"):
        split(model, k)


def test_plain_torchvision_networks_have_blocks_too():
    with torch.device("meta"):
        model = torchvision_models.resnet18(num_classes=3)
    assert block_names(model)[-1] == "layer4.1"
    assert resolve_parameters(model, "blocks:0") == resolve_parameters(model, "head") == ("fc.weight", "fc.bias")
    assert "layer4.1.conv1.weight" in resolve_parameters(model, "blocks:1")
    assert "layer4.0.conv1.weight" not in resolve_parameters(model, "blocks:1")


def test_wide_networks_are_cut_where_cartl_cuts_them():
    model = network("wrn_34_10", "meta")
    head, norm = {"net.fc.weight", "net.fc.bias"}, {"net.bn1.weight", "net.bn1.bias"}
    # k: the stage and the place in it of the first block that is trained, 1 to 15 counting from the stem
    for k, first in [(3, (3, 4)), (4, (3, 3)), (7, (3, 0)), (8, (2, 4)), (17, (1, 0))]:
        trained = set(split(model, k, counting="cartl").parameters)
        wanted = {
            name
            for name, _ in model.named_parameters()
            for words in [name.split(".")]
            if words[1].startswith("block") and (int(words[1][-1]), int(words[3])) >= first
        }
        assert trained == wanted | norm | head
        assert trained == set(split(model, k - 2).parameters)
    assert set(split(model, 1, counting="cartl").parameters) == head == set(split(model, 0).parameters)
    assert set(split(model, 2, counting="cartl").parameters) == norm | head
    assert not any(name.startswith("net.conv1") for name in split(model, 17, counting="cartl").parameters)
    for k in (0, 18):
        with pytest.raises(UsageError, match=f"k is {k}, but this network has 17 blocks as CARTL counts them"):
            split(model, k, counting="cartl")


def test_other_networks_have_no_batch_norm_that_cartl_counts():
    model = network("cifar_resnet18", "meta")
    for k in range(1, 10):
        assert split(model, k, counting="cartl").parameters == split(model, k - 1).parameters
    with pytest.raises(UsageError, match="has 9 blocks as CARTL counts them"):
        split(model, 10, counting="cartl")


def test_either_count_cuts_without_changing_the_network():
    torch.manual_seed(0)
    model = network("wrn_10_1").eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for k in range(1, 6):
        parts = split(model, k, counting="cartl")
        assert torch.equal(parts.head(parts.features(parts.frozen(x))), model(x))


def test_other_networks_have_no_known_blocks():
    with pytest.raises(UsageError, match="blocks of a Sequential are not known"):
        split(nn.Sequential(nn.Linear(3, 2)), 0)


class Own(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.upweight_blocks = blocks
        self.first = nn.Linear(4, 4)
        self.body = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)])
        self.out = nn.Linear(4, 2)


def test_own_network_names_its_blocks():
    model = Own(["body.0", "body.1", "body.2"])
    assert resolve_parameters(model, "blocks:0") == ("out.weight", "out.bias")
    assert resolve_parameters(model, "blocks:2") == ("body.1.weight", "body.2.weight", "out.weight", "out.bias")
    with pytest.raises(UsageError, match="has 3 residual blocks"):
        resolve_parameters(model, "blocks:4")
    with pytest.raises(UsageError, match=r"names 'body.7'"):
        resolve_parameters(Own(["body.7"]), "blocks:1")


def test_words_and_names_resolve_in_the_models_order():
    model = Own([])
    assert head_name(model) == "out"
    assert resolve_parameters(model, "all") == tuple(name for name, _ in model.named_parameters())
    assert resolve_parameters(model, ["out.bias", "body", "first.weight", "body.1"]) == (
        "first.weight",
        "body.0.weight",
        "body.1.weight",
        "body.2.weight",
        "out.bias",
    )
    assert resolve_parameters(model, "first") == ("first.weight", "first.bias")


def test_head_of_a_bare_linear_layer_is_the_layer():
    assert resolve_parameters(nn.Linear(3, 2), "head") == ("weight", "bias")


def test_tied_head_resolves_to_the_name_the_model_lists():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert resolve_parameters(model, "head") == ("0.weight",)
    assert resolve_parameters(model, ["1.weight"]) == ("0.weight",)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("blocks:x", "should end in a number"),
        ("blocks:-1", "should end in a number"),
        ("tail", "no parameter or module 'tail'"),
        (["first.weight", "nothing"], "no parameter or module 'nothing'"),
        ([], "holds no parameter"),
    ],
)
def test_unknown_words_are_refused(spec, words):
    with pytest.raises(UsageError, match=words):
        resolve_parameters(Own([]), spec)


def test_network_without_a_linear_layer_has_no_head():
    with pytest.raises(UsageError, match="has no linear layer"):
        resolve_parameters(nn.Conv2d(1, 1, 1), "head")


def test_new_head_depends_on_the_seed_alone_and_leaves_the_source_be():
    model = network("small_resnet").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, same, other = (with_new_head(model, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.net.head.weight, same.net.head.weight)
    assert not torch.equal(one.net.head.weight, other.net.head.weight)
    assert one.spec.num_classes == 3
    assert model.spec.num_classes == 5
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    one.net.stem[0].weight.data.zero_()
    assert model.net.stem[0].weight.abs().sum() > 0
