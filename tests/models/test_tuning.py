"""Whatever the recipe: what it trains moves, everything else stays to the bit, and so does the source."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from upweight.models.checkpoints import load_model, save_model
from upweight.models.data import load_data
from upweight.models.finetune import fine_tune, network_to_train
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.models.zoo import build


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A wide residual network of three blocks whose batch-norm layers are not those it was born with."""
    torch.manual_seed(0)
    model = build("wrn_10_1", num_classes=3, mean=(0.5,) * 3, std=(0.3,) * 3, input_shape=(3, 8, 8)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 8, 8))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("source") / "wide.safetensors"
    save_model(path, model, {})
    return load_model(path)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp("target") / "few.npz"
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(path, x=x, y=np.arange(12) % 2)
    return load_data(DataSettings(data=str(path)), (3, 8, 8))


IMAGES = [{}, {"flip": True}, {"shift": 1, "rotate": 9.0}, {"adversarial": True, "eps": 0.5, "steps": 1}]


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    k=st.sampled_from([0, 1, 2, 3, "all"]),
    counting=st.sampled_from(["residual", "cartl"]),
    statistics=st.sampled_from(["trained", "extractor", "all", "none"]),
    affine=st.booleans(),
    neft=st.sampled_from([None, 0.6]),
    fresh=st.booleans(),
    lwf=st.sampled_from([0.0, 0.1]),
    hidden=st.sampled_from([0, 1]),
    images=st.sampled_from(IMAGES),
    cache_mb=st.sampled_from([0, 64]),
)
def test_what_is_frozen_stays_and_what_is_trained_moves(
    tmp_path_factory, source, target, k, counting, statistics, affine, neft, fresh, lwf, hidden, images, cache_mb
):
    k = k if k == "all" or counting == "residual" else k + 2
    alone = k == 0
    assume(not (alone and (fresh or lwf)) and not (lwf and (fresh or images)))
    recipe = FineTuneSettings(
        **images,
        **{
            "k": k,
            "counting": counting,
            "bn_statistics": statistics,
            "bn_affine": affine,
            "neft": neft,
            "fresh": fresh,
        },
        **{"lwf": lwf, "hidden": hidden, "cache_mb": cache_mb, "head_first": 0.0},
        **{"n": 12, "epochs": 2, "batch_size": 6, "learning_rate": 0.05, "seed": 3, "device": "cpu"},
    )
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    start, parts = network_to_train(source.model, 2, recipe)
    start = {name: value.clone() for name, value in start.state_dict().items()}
    run = fine_tune(source, target, recipe, tmp_path_factory.mktemp("run"))
    trained, head = set(parts.parameters), ("net.fc",)
    scopes = {name.rpartition(".")[0] for name in trained}
    assert any(name.startswith(head) for name in trained)
    for name, value in run.model.model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        norm = f"{layer}.running_mean" in start
        if leaf in {"running_mean", "running_var", "num_batches_tracked"}:
            moves = statistics in {"trained" if layer in scopes else "extractor", "all"}
        else:
            moves = name in trained and (affine or not norm or name.startswith(head))
        assert torch.equal(value, start[name]) != moves, name
        if name not in trained and layer not in scopes and not moves:
            assert torch.equal(value, before[name]), name
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())
