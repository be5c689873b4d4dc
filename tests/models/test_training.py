"""The shared loop: batches, resume, and what it refuses."""

import json

import pytest
import torch
from torch import nn
from torch.optim import SGD
from upweight.models.errors import RunMismatch, TrainingError
from upweight.models.training import FitPlan, batch_order, fit, require_same_settings, run_epoch, settings_digest

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def case():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return module, SGD(module.parameters(), 0.1, 0.9, weight_decay=1e-3)


def batches(epoch):
    return ((X[rows], Y[rows]) for rows in batch_order(20, 8, 3, epoch))


def plan(path, **changes):
    base = {"stage": "fit", "epochs": 5, "seed": 3, "rate": lambda epoch, step: 0.1 / epoch}
    return FitPlan(**(base | {"partial": path / "partial", "settings": {"a": 1}} | changes))


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(20, 8, [8, 8, 4]), (17, 8, [8, 9]), (3, 8, [3]), (3, 1, [1, 1, 1]), (9, 8, [9])]
)
def test_batches_hold_every_row_once_and_none_is_alone(n, size, sizes):
    rows = list(batch_order(n, size, seed=1, epoch=1))
    assert [len(r) for r in rows] == sizes
    assert sorted(torch.cat(rows).tolist()) == list(range(n))


def test_batch_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return torch.cat(list(batch_order(30, 7, seed, epoch))).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


class Stop(Exception):
    pass


def stop_at(epoch):
    def progress(stage, done, total):
        assert (stage, total) == ("fit", 5)
        if done == epoch:
            raise Stop

    return progress


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, epoch):
    module, optimizer = case()
    (tmp_path / "whole").mkdir()
    whole = fit(module, optimizer, batches, plan(tmp_path / "whole"))
    again, optimizer = case()
    with pytest.raises(Stop):
        fit(again, optimizer, batches, plan(tmp_path), stop_at(epoch))
    fresh, optimizer = case()
    with torch.no_grad():
        fresh[0].weight.zero_()  # what it begins with does not matter any more
    state = fit(fresh, optimizer, batches, plan(tmp_path))
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in module.state_dict().items())
    assert [entry["loss"] for entry in state.history] == [entry["loss"] for entry in whole.history]


def test_global_random_numbers_do_not_reach_a_fit(tmp_path):
    losses = []
    for seed in (1, 2):
        module, optimizer = case()
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        losses.append(fit(module, optimizer, batches, plan(tmp_path / str(seed))).history)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("content", [b"", b"garbage", b"cut"])
def test_damaged_state_is_begun_anew(tmp_path, content):
    module, optimizer = case()
    whole = fit(module, optimizer, batches, plan(tmp_path))
    path = tmp_path / "partial"
    path.write_bytes(path.read_bytes()[:-40] if content == b"cut" else content)
    module, optimizer = case()
    assert fit(module, optimizer, batches, plan(tmp_path)).history == whole.history


def test_state_of_other_settings_is_refused(tmp_path):
    module, optimizer = case()
    fit(module, optimizer, batches, plan(tmp_path))
    before = (tmp_path / "partial").read_bytes()
    with pytest.raises(RunMismatch, match=r"was made with a=1; this call asks a=2.* --overwrite .* --out"):
        fit(module, optimizer, batches, plan(tmp_path, settings={"a": 2}))
    assert (tmp_path / "partial").read_bytes() == before


def test_measurements_enter_the_history(tmp_path):
    module, optimizer = case()
    state = fit(module, optimizer, batches, plan(tmp_path, epochs=2, measure=lambda epoch: {"twice": 2.0 * epoch}))
    assert [(e["epoch"], e["twice"]) for e in state.history] == [(1, 2.0), (2, 4.0)]


def test_plain_loop_agrees_with_sgd_by_hand(tmp_path):
    torch.manual_seed(1)
    module = nn.Linear(6, 3).double()
    weight = module.weight.detach().clone()
    bias = module.bias.detach().clone()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in (1, 2):
        for rows in batch_order(20, 8, 3, epoch):
            x = X[rows].double()
            residual = (torch.softmax(x @ weight.T + bias, 1) - nn.functional.one_hot(Y[rows], 3)) / len(rows)
            for i, (value, gradient) in enumerate(((weight, residual.T @ x), (bias, residual.sum(0)))):
                velocity[i] = 0.9 * velocity[i] + gradient + 1e-2 * value
                value -= 0.1 / epoch * velocity[i]
    optimizer = SGD(module.parameters(), 1.0, 0.9, weight_decay=1e-2)
    doubled = plan(tmp_path, epochs=2)
    fit(module, optimizer, lambda epoch: ((x.double(), y) for x, y in batches(epoch)), doubled)
    torch.testing.assert_close(module.weight.detach(), weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(module.bias.detach(), bias, rtol=1e-10, atol=1e-12)


def test_diverged_fit_is_refused():
    module, optimizer = case()
    with pytest.raises(TrainingError, match="diverged: its loss became nan; lower the learning rate"):
        run_epoch(module, optimizer, [(X * float("nan"), Y)], lambda step: 0.1)


def test_a_fit_whose_last_step_diverged_is_refused():
    module = nn.Linear(6, 3)
    with pytest.raises(TrainingError, match="diverged: its weights are no longer finite; lower the learning rate"):
        run_epoch(module, SGD(module.parameters(), 0.1), [(1e6 * X, Y)], lambda step: 1e38)


def test_digest_does_not_depend_on_the_order_of_keys():
    assert settings_digest({"a": 1, "b": [2]}) == settings_digest(json.loads('{"b": [2], "a": 1}'))
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})


def test_mismatch_shows_every_difference_and_shortens_hashes(tmp_path):
    require_same_settings(tmp_path, {"a": 1}, {"a": 1})
    with pytest.raises(RunMismatch, match=r"made with k=0, sha=a{12}\.\.\., new=None; this call asks k=1, sha=b"):
        require_same_settings(
            tmp_path, {"k": 0, "sha": "a" * 64, "same": 1}, {"k": 1, "sha": "b" * 64, "same": 1, "new": 2}
        )
