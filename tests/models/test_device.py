"""Devices by name, and randomness that stays inside."""

import pytest
import torch
from upweight import UsageError
from upweight.models.device import derive_seed, generator, reproducible, resolve_device, seeded


def test_auto_finds_what_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_unknown_and_absent_devices_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="no device 'gpu'"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch finds no GPU here"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="there are 1 GPUs"):
        resolve_device("cuda:1")


def test_seeds_differ_by_purpose_run_and_epoch():
    keys = [("order", 1, 2), ("order", 2, 1), ("order", 12), ("dropout", 1, 2)]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [derive_seed(*key) for key in keys]
    assert derive_seed("order", 20_000_000, 1) == 679225046440630329  # a changed stream changes every run


def test_seeded_is_repeatable_and_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with seeded("dropout", 1):
        first = torch.rand(3)
    with seeded("dropout", 1):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, torch.rand(3, generator=generator("dropout", 2)))


def test_flags_come_back():
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    with reproducible():
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, False)
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == before
