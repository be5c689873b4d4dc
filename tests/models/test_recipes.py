"""The recipes of fine-tuning: each against a loop over the whole network, what each leaves alone, and that all resume."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional
from upweight import UsageError
from upweight.models.checkpoints import read_tensors, save_model
from upweight.models.data import choose_subset, load_data
from upweight.models.errors import RunMismatch
from upweight.models.finetune import fine_tune
from upweight.models.heads import HeadSpec
from upweight.models.runs import load_run
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.models.training import batch_order
from upweight.models.transfer import resolve_parameters, with_new_head
from upweight.models.zoo import build

RECIPES = {
    "all": {"k": "all"},
    "mlp": {"k": 0, "hidden": 2, "hidden_width": 12, "head_batch_norm": True, "head_dropout": 0.3},
    "lwf": {"k": "all", "lwf": 0.5},
    "lwf-l2": {"k": 2, "lwf": 0.5, "lwf_distance": "l2", "head_first": 0.25},
    "neft": {"k": 2, "neft": 0.6},
    "affine": {"k": 2, "bn_affine": False},
    "none": {"k": 2, "bn_statistics": "none"},
    "extractor": {"k": 2, "bn_statistics": "extractor"},
    "everywhere": {"k": 2, "bn_statistics": "all"},
    "attacked": {"k": 1, "adversarial": True, "norm": "linf", "eps": 0.1, "steps": 2},
    "changed": {"k": 1, "shift": 2, "flip": True, "rotate": 10.0, "bn_statistics": "all"},
    "fresh": {"k": 1, "fresh": True, "neft": 0.8},
    "cartl": {"k": 2, "counting": "cartl"},
    "together": {"k": 1, "hidden": 1, "lwf": 0.2, "neft": 0.8, "bn_affine": False, "bn_statistics": "all"},
}


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSettings(data=str(tiny.data())), (1, 28, 28))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.lived_source(tmp_path_factory.mktemp("source"))


def quick(**changes):
    base = {"k": 2, "n": 32, "epochs": 3, "seed": 1, "batch_size": 16, "learning_rate": 0.02, "device": "cpu"}
    return FineTuneSettings(**(base | changes))


def weights(run):
    return run.model.model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- a loop over the whole network -----------------------------------------------------------------------------------------


def penultimate(model, x):
    net = model.net
    return net.pool(net.stage3(net.stage2(net.stage1(net.stem(model.normalizer(x))))))


def moved(student, source, kind):
    """Mean over the images of the sum or mean over the features, written out."""
    total = 0.0
    for a, b in zip(student, source, strict=True):
        total = total + (
            (a - b).abs().sum() / len(a) if kind == "mean_abs" else (((a - b) ** 2).sum() + 1e-30).sqrt()
        )  # no NaN at zero
    return total / len(student)


def by_hand(source, digits, settings, *, follow, idle=(), warm=0, distance=None):
    """Autograd over the whole network, every image anew: batch-norm follows below `follow`, `idle` parameters stay."""
    head = HeadSpec(hidden=settings.hidden, width=settings.hidden_width or 0, batch_norm=settings.head_batch_norm)
    model = with_new_head(source.model, 10, settings.seed, head)
    spec = "all" if settings.k == "all" else f"blocks:{settings.k}"
    names = [name for name in resolve_parameters(model, spec) if name not in idle]
    train = digits.train.subset(choose_subset(digits.train.labels, settings.n, settings.seed))
    velocity = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    step = 0
    for epoch in range(1, settings.epochs + 1):
        rate = settings.learning_rate * 0.1 ** (epoch - 1)  # three epochs: a third each
        for rows in batch_order(settings.n, settings.batch_size, settings.seed, epoch):
            model.eval()
            model.net.head.train()
            for name, module in model.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.training = step >= warm and name.startswith(follow)
            moving = [name for name in names if step >= warm or name.startswith("net.head")]
            x = train.images(rows)
            features = penultimate(model, x)
            loss = functional.cross_entropy(model.net.head(features), train.labels[rows])
            if distance:
                with torch.no_grad():
                    wanted = penultimate(source.model, x)
                loss = loss + settings.lwf * moved(features, wanted, distance)
            gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in moving])
            with torch.no_grad():
                for name, gradient in zip(moving, gradients, strict=True):
                    p, v = model.get_parameter(name), velocity[name]
                    v.mul_(settings.momentum).add_(gradient + settings.weight_decay * p)
                    p.sub_(rate * v)
            step += 1
    return model.eval().state_dict()


TRAINED = ("net.stage3.1", "net.stage3.2")
FROZEN = ("net.stem", "net.stage1", "net.stage2", "net.stage3.0")
AFFINE = [f"net.stage3.{b}.bn{i}.{half}" for b in (1, 2) for i in (1, 2) for half in ("weight", "bias")]


@pytest.mark.parametrize(
    ("changes", "reference"),
    [
        ({"k": "all", "learning_rate": 1e-3}, {"follow": "net"}),
        ({"k": 0, "hidden": 2, "hidden_width": 12, "head_batch_norm": True}, {"follow": ()}),
        ({"k": 2, "hidden": 1}, {"follow": TRAINED}),
        ({"k": "all", "lwf": 2.0}, {"follow": (), "warm": 3, "distance": "mean_abs"}),
        ({"lwf": 2.0, "head_first": 0.0}, {"follow": (), "distance": "mean_abs"}),
        ({"lwf": 0.5, "lwf_distance": "l2", "cache_mb": 0}, {"follow": (), "warm": 3, "distance": "l2"}),
        ({"lwf": 0.5, "bn_statistics": "trained"}, {"follow": TRAINED, "warm": 3, "distance": "mean_abs"}),
        ({"head_first": 0.34}, {"follow": TRAINED, "warm": 2}),
        ({"bn_affine": False}, {"follow": TRAINED, "idle": AFFINE}),
        ({"bn_statistics": "none"}, {"follow": ()}),
        ({"bn_statistics": "extractor"}, {"follow": FROZEN}),
        ({"bn_statistics": "all"}, {"follow": "net"}),
    ],
    ids=lambda value: "-".join(f"{name}={v}" for name, v in value.items()) if "follow" not in value else "",
)
def test_training_agrees_with_a_loop_over_the_whole_network(tmp_path, source, digits, changes, reference):
    settings = quick(**changes)
    run = fine_tune(source, digits, settings, tmp_path)
    expected = by_hand(source, digits, settings, **reference)
    for name, value in weights(run).items():  # float32, six steps; other batch sizes round otherwise
        torch.testing.assert_close(value, expected[name], rtol=5e-4, atol=5e-5, msg=name)


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"lwf": 2.0, "head_first": 0.0}, {"bn_statistics": "none"}),
        ({"lwf": 0.5, "lwf_distance": "l2", "head_first": 0.0}, {"bn_statistics": "none"}),
        ({"neft": 0.6}, {}),
        ({"bn_affine": False}, {}),
        ({"bn_statistics": "none"}, {}),
        ({"head_first": 0.5}, {}),
    ],
)
def test_recipe_differs_by_more_than_the_tolerance_from_training_without_it(tmp_path, source, digits, changes, without):
    """Otherwise the test above would pass with the term dropped."""
    one = weights(fine_tune(source, digits, quick(**changes), tmp_path / "with"))
    other = weights(fine_tune(source, digits, quick(**without), tmp_path / "without"))
    odd = [
        name
        for name in one
        if one[name].is_floating_point() and not torch.allclose(one[name], other[name], rtol=5e-3, atol=5e-4)
    ]
    assert any(name.startswith("net.stage3") for name in odd)


# ---- what stays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["trained", "extractor", "all", "none"])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_moves_where_it_was_asked_to_and_stays_to_the_bit_elsewhere(tmp_path, source, digits, word, affine):
    run = fine_tune(source, digits, quick(bn_statistics=word, bn_affine=affine, epochs=2), tmp_path)
    before, after = source.model.state_dict(), weights(run)
    for name, value in after.items():
        part = "trained" if name.startswith(TRAINED) else "extractor"
        if name.startswith("net.head"):
            continue
        if "running" in name or "tracked" in name:
            moves = word in {part, "all"}
        else:
            moves = part == "trained" and (affine or name not in AFFINE)
        assert torch.equal(value, before[name]) != moves, name


def test_blocks_stay_to_the_bit_while_the_head_warms_up(tmp_path, source, digits):
    settings = quick(k="all", epochs=2, head_first=0.5, weight_decay=0.1, bn_statistics="all")

    def stop(stage, done, total):
        if stage == "fine-tune" and done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fine_tune(source, digits, settings, tmp_path, stop)
    (partial,) = tmp_path.iterdir()
    kept = {name: value for name, value in read_tensors(partial)[0].items() if name.startswith("module.")}
    head = with_new_head(source.model, 10, settings.seed).net.head
    before = {value.numpy().tobytes() for value in source.model.state_dict().values()}
    moved = [value for value in kept.values() if value.numpy().tobytes() not in before]
    assert sorted(len(value.shape) for value in moved) == [head.bias.ndim, head.weight.ndim]
    done = weights(fine_tune(source, digits, settings, tmp_path))
    assert not torch.equal(done["net.stem.0.weight"], source.model.state_dict()["net.stem.0.weight"])


def test_all_trains_every_parameter_and_is_told_from_all_blocks(tmp_path, source, digits):
    run = fine_tune(source, digits, quick(k="all", epochs=1), tmp_path / "all")
    before = source.model.state_dict()
    for name, _ in run.model.model.named_parameters():
        assert name.startswith("net.head") or not torch.equal(weights(run)[name], before[name]), name
    assert (run.info["k"], run.info["settings"]["k"], run.info["decisive"]["k"]) == (9, "all", "all")
    blocks = fine_tune(source, digits, quick(k=9, epochs=1), tmp_path / "blocks")
    assert torch.equal(weights(blocks)["net.stem.0.weight"], before["net.stem.0.weight"])


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_every_trained_weight_has_the_norm_and_every_other_its_own(tmp_path, source, digits, beta):
    run = fine_tune(source, digits, quick(k=4, neft=beta, hidden=1, learning_rate=0.005), tmp_path)
    before, after = source.model.state_dict(), weights(load_run(tmp_path, digits))
    scaled = [
        name for name in after if name.startswith(("net.stage2.2", "net.stage3", "net.head")) and after[name].ndim > 1
    ]
    assert len(scaled) == 4 * 2 + 1 + 2  # two convolutions a block, one shortcut, two layers of the head
    for name, value in after.items():
        if name in scaled:
            norm = np.linalg.norm(value.double().numpy().reshape(len(value), -1), ord=2)
            # the iteration never overrates a singular value, so beta is never missed from below; float32
            assert beta * (1 - 1e-5) <= norm < beta * 1.05, name
        elif value.ndim > 1 and not name.startswith("normalizer"):
            assert torch.equal(value, before[name]), name
    assert not any("parametrizations" in name for name in after)
    assert run.info["history"][-1]["test_accuracy"] == run.info["accuracy"]["test"]


# ---- repeated, stopped, resumed, refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, source, digits, recipe):
    settings = quick(**(recipe | {"epochs": 2}))
    whole = fine_tune(source, digits, settings, tmp_path / "whole")

    def stop(stage, done, total):
        if stage == "fine-tune" and done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fine_tune(source, digits, settings, tmp_path / "run", stop)
    torch.manual_seed(99)
    resumed = fine_tune(source, digits, settings, tmp_path / "run")
    assert resumed.info["history"] == whole.info["history"]
    assert resumed.info["model_sha256"] == whole.info["model_sha256"]
    assert same(weights(load_run(tmp_path / "run", digits)), weights(whole))
    with pytest.raises(RunMismatch, match="--overwrite"):
        fine_tune(source, digits, quick(epochs=2), tmp_path / "run")


@pytest.mark.parametrize("k", [2, "all"])
def test_wide_networks_take_the_recipes_too(tmp_path, k):
    torch.manual_seed(0)
    model = build("wrn_10_1", num_classes=3, mean=(0.5,) * 3, std=(0.3,) * 3, input_shape=(3, 16, 16))
    save_model(tmp_path / "wide.safetensors", model, {})
    data = load_data(DataSettings(data=str(tiny.data())), (3, 16, 16))
    recipe = {"k": k, "neft": 0.6, "lwf": 0.01, "hidden": 1, "bn_affine": False, "epochs": 2, "learning_rate": 1e-3}
    run = fine_tune(tmp_path / "wide.safetensors", data, quick(**recipe), tmp_path / "run")
    after = weights(load_run(tmp_path / "run", data))
    for name, value in after.items():
        if "conv" in name.lower():
            frozen = k == 2 and not name.startswith(("net.block2", "net.block3"))
            assert torch.equal(value, model.state_dict()[name]) == frozen, name
            norm = np.linalg.norm(value.double().numpy().reshape(len(value), -1), ord=2)
            assert frozen or norm == pytest.approx(0.6, rel=0.05), name
        elif not name.startswith("net.fc"):
            assert torch.equal(value, model.state_dict()[name]), name
    assert run.info["k"] == {2: 2, "all": 3}[k]


def test_settings_of_recipes_that_are_not_used_leave_no_trace(tmp_path, source, digits):
    plain = fine_tune(source, digits, quick(epochs=1), tmp_path)
    names = {"hidden", "hidden_width", "head_batch_norm", "head_dropout", "head_first"}
    names |= {"lwf", "lwf_distance", "neft", "bn_affine", "bn_statistics", "fresh", "counting"}
    names |= {"adversarial", "norm", "eps", "steps", "step_size", "shift", "flip", "rotate"}
    assert not names & (plain.info["decisive"].keys() | plain.info["settings"].keys())
    said = quick(epochs=1, bn_statistics="trained", head_first=0.0, lwf_distance="l2")  # the same in words
    assert fine_tune(source, digits, said, tmp_path).info == plain.info


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": "most"}, "k is 'most'; give a whole number of at least 0, or all"),
        ({"hidden": -1}, "hidden is -1"),
        ({"hidden": 1, "hidden_width": 0}, "hidden_width is 0"),
        ({"hidden": 1, "head_dropout": 1.0}, "head_dropout is 1.0; give a part from 0 to below 1"),
        ({"head_batch_norm": True, "head_dropout": 0.5}, "head_batch_norm, head_dropout would act on hidden layers"),
        ({"head_first": float("nan")}, "head_first is nan"),
        ({"lwf": -0.1}, "lwf is -0.1; give a finite number >= 0"),
        ({"lwf": 0.005, "k": 0}, r"lwf is 0.005 with k = 0, where the features stay those of the source"),
        ({"lwf_distance": "cosine"}, "lwf_distance is 'cosine'; choose one of mean_abs, l2"),
        ({"neft": 0.0}, "neft is 0.0; give a finite number > 0"),
        ({"neft": float("inf")}, "neft is inf"),
        ({"bn_statistics": "some"}, "bn_statistics is 'some'; choose one of trained, extractor, all, none"),
        ({"fresh": True, "k": 0}, "fresh is given with k = 0, where the head alone is trained"),
        ({"fresh": True, "k": 1, "counting": "cartl"}, "fresh is given with k = 1.*give k of at least 2"),
        ({"fresh": True, "lwf": 0.1}, "lwf is 0.1 with fresh blocks, which know nothing to forget"),
        ({"k": 0, "counting": "cartl"}, "k is 0, and CARTL counts the head as 1"),
        ({"lwf": 0.1, "k": 1, "counting": "cartl"}, "lwf is 0.1 with k = 1"),
        ({"counting": "ours"}, "counting is 'ours'; choose one of residual, cartl"),
        ({"adversarial": True, "norm": "l1"}, "norm is 'l1'; choose one of l2, linf"),
        ({"adversarial": True, "steps": -1}, "steps is -1"),
        ({"eps": 0.5, "step_size": 0.1}, "eps, step_size would act on the attack of the training, and there is none"),
        ({"shift": -1}, "shift is -1; give a whole number of at least 0"),
        ({"rotate": float("nan")}, "rotate is nan"),
        ({"rotate": 200}, "rotate is 200; give degrees from 0 to 180"),
        ({"lwf": 0.1, "flip": True}, "lwf is 0.1 with training images that are moved.*leave lwf out"),
        ({"lwf": 0.1, "adversarial": True}, "lwf is 0.1 with training images that are moved"),
    ],
)
def test_impossible_recipes_are_refused_in_one_sentence(changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        quick(**changes).check_blocks()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


# ---- from the command line to the scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--k", 0, "--hidden", 2, "--hidden-width", 8, "--head-batch-norm", "--head-dropout", 0.2),
        ("--k", "all", "--lwf", 0.005, "--learning-rate", 1e-3),
        ("--k", 1, "--neft", 0.6, "--no-bn-affine", "--bn-statistics", "none"),
    ],
    ids=["mlp", "lwf", "neft"],
)
def test_a_run_of_a_recipe_is_scored_like_any_other(tmp_path, words):
    told = ("fine-tune", "--data", tiny.data(), "--n", 40, "--epochs", 2, "--device", "cpu", *words)
    tiny.done(*told, "--out", tmp_path / "run")
    tiny.done("fine-tune", "--config", tmp_path / "run" / "fine-tune.toml", "--out", tmp_path / "replayed")
    files = [tmp_path / name / "model.safetensors" for name in ("run", "replayed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    k = load_run(tmp_path / "run").info["k"]
    for parameters in ("head", f"blocks:{min(k, 1)}"):
        out = tmp_path / parameters.replace(":", "-")
        tiny.done("attribute", tmp_path / "run", "--parameters", parameters, "--damping", 1e-3, "--out", out)
        assert "Most helpful train examples for query 3" in tiny.done("query", out, "--query", 3)
