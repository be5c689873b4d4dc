"""Where a recipe cuts a network, and what its trained blocks begin with."""

import pytest
import tiny
import torch
from upweight import UsageError
from upweight.models.checkpoints import load_model, save_model
from upweight.models.data import load_data
from upweight.models.device import seeded
from upweight.models.finetune import fine_tune, network_to_train
from upweight.models.runs import read_run
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.models.transfer import split, with_new_head
from upweight.models.zoo import Classifier, build


def network(architecture="small_resnet", seed=0):
    torch.manual_seed(seed)
    channels = 1 if architecture == "small_resnet" else 3
    shape = (channels, 16, 16)
    model = build(architecture, num_classes=4, mean=(0.3,) * channels, std=(0.4,) * channels, input_shape=shape).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, *shape))
    return model.eval()


@pytest.mark.parametrize("architecture", ["small_resnet", "wrn_10_1"])
@pytest.mark.parametrize("k", [1, 2, "all"])
def test_fresh_blocks_are_as_born_and_the_frozen_ones_the_sources(architecture, k):
    model = network(architecture)
    settings = FineTuneSettings(k=k, seed=5, fresh=True)
    made, parts = network_to_train(model, 10, settings)
    plain, _ = network_to_train(model, 10, FineTuneSettings(k=k, seed=5))
    with seeded("fresh blocks", 5):
        born = Classifier(made.spec).state_dict()
    head = {"net.head.weight", "net.head.bias", "net.fc.weight", "net.fc.bias"}
    pointers = {value.data_ptr() for value in parts.features.state_dict().values()}
    features = [name for name, value in made.state_dict().items() if value.data_ptr() in pointers]
    renewed = 0
    for name, value in made.state_dict().items():
        if name in features:
            assert torch.equal(value, born[name]), name
            renewed += not torch.equal(value, model.state_dict()[name])
        elif name not in head:
            assert torch.equal(value, model.state_dict()[name]), name
        else:
            assert torch.equal(value, plain.state_dict()[name]), name
    # convolutions and statistics at least; the scales of batch-norm are born as they were
    assert renewed > len(features) / 3
    assert not made.training
    assert not any(p.requires_grad for p in parts.frozen.parameters())


def test_fresh_blocks_depend_on_the_seed_alone():
    one, same, other = (
        network_to_train(network(seed=source), 10, FineTuneSettings(k=2, seed=seed, fresh=True))[0].net.stage3[2]
        for source, seed in ((0, 1), (7, 1), (0, 2))
    )
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize(("architecture", "most", "beyond"), [("wrn_10_1", 5, 2), ("small_resnet", 10, 1)])
def test_cartls_count_cuts_where_its_split_does(architecture, most, beyond):
    model = network(architecture)
    for k in range(1, most + 1):
        made, parts = network_to_train(model, 10, FineTuneSettings(k=k, seed=1, counting="cartl"))
        expected = split(with_new_head(model, 10, 1), k, counting="cartl")
        assert parts.parameters == expected.parameters
        assert {name for name, p in made.named_parameters() if p.requires_grad} == set(parts.parameters)
        assert parts.blocks == max(k - beyond, 0)
    with pytest.raises(UsageError, match="blocks as CARTL counts them"):
        network_to_train(model, 10, FineTuneSettings(k=most + 1, counting="cartl"))
    whole = FineTuneSettings(k="all", counting="cartl")
    assert len(network_to_train(model, 10, whole)[1].parameters) == len(list(model.parameters()))


def test_count_is_typed_and_written_down(tmp_path):
    save_model(tmp_path / "wide.safetensors", network("wrn_10_1"), {})
    words = (
        "--source",
        tmp_path / "wide.safetensors",
        "--data",
        tiny.data(),
        "--n",
        20,
        "--epochs",
        1,
        "--device",
        "cpu",
    )
    told = ("fine-tune", *words, "--k", 3, "--counting", "cartl", "--out", tmp_path / "cartl")
    tiny.done(*told)
    tiny.done("fine-tune", *words, "--k", 1, "--out", tmp_path / "ours")
    cartl, ours = (read_run(tmp_path / name) for name in ("cartl", "ours"))
    assert (cartl["k"], cartl["settings"]["k"], cartl["settings"]["counting"]) == (1, 3, "cartl")
    assert ours["k"] == 1 and "counting" not in ours["settings"]
    one, other = (load_model(tmp_path / name / "model.safetensors").model.state_dict() for name in ("cartl", "ours"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert "k=3, counting=cartl; this call asks k=1, counting=None" in tiny.refused(
        4, "fine-tune", *words, "--k", 1, "--out", tmp_path / "cartl"
    )


def test_fresh_blocks_can_be_resumed_and_are_told_apart(tmp_path):
    save_model(tmp_path / "mine.safetensors", network(), {})
    data = load_data(DataSettings(data=str(tiny.data())), (1, 16, 16))
    settings = FineTuneSettings(k=1, n=20, epochs=2, fresh=True, learning_rate=0.01, device="cpu")
    whole = fine_tune(tmp_path / "mine.safetensors", data, settings, tmp_path / "whole")

    def stop(stage, done, total):
        if (stage, done) == ("fine-tune", 1):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fine_tune(tmp_path / "mine.safetensors", data, settings, tmp_path / "run", stop)
    resumed = fine_tune(tmp_path / "mine.safetensors", data, settings, tmp_path / "run")
    assert resumed.info["model_sha256"] == whole.info["model_sha256"]
    assert whole.info["settings"]["fresh"] is True


def test_a_comparison_takes_recipes_that_need_trained_blocks(tmp_path):
    from upweight.comparison import CompareSettings, _plan

    mine = tmp_path / "mine.safetensors"
    save_model(mine, network("wrn_10_1"), {})
    settings = CompareSettings(sources=(str(mine),), k=(3, 5), seeds=1)
    recipe = FineTuneSettings(lwf=0.01, counting="cartl")
    plan = _plan(settings, recipe, [load_model(mine)])
    assert [(one.k, one.lwf, one.counting) for _, one in plan] == [(3, 0.01, "cartl"), (5, 0.01, "cartl")]
    for k, words in ((0, "k is 0, and CARTL"), (1, "nothing to forget"), (6, "as CARTL counts them")):
        with pytest.raises(UsageError, match=words):
            _plan(CompareSettings(sources=(str(mine),), k=(k,), seeds=1), recipe, [load_model(mine)])
