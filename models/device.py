"""Where a fit runs, and the randomness it draws from."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch

from .. import UsageError


def resolve_device(name: str) -> torch.device:
    """The device a setting names; `auto` is the GPU where there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Returns:
        A device that is there.

    Raises:
        UsageError: The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"There is no device {name!r}; choose auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"The device is {name!r}, but torch finds no GPU here; use auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"The device is {name!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0.")
    return device


def derive_seed(*key: int | str) -> int:
    """A seed for one purpose of one run, so that no two purposes share a stream of random numbers.

    Args:
        key: What the numbers are for: a word, the run's seed, an epoch.

    Returns:
        A number of 63 bits that depends on all of the key.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed(*key)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))


@contextmanager
def seeded(*key: int | str, device: torch.device | str = "cpu") -> Generator[None, None, None]:
    """Seed torch's global generators for a while (initial weights, dropout) and put them back as they were."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(derive_seed(*key))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derive_seed(*key))
        yield


@contextmanager
def threads(count: int | None) -> Generator[None, None, None]:
    """Let torch use so many threads for a while; None: as many as before.

    The steps of a small network take less time than handing them out does: on a busy machine a second thread makes them several
    times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def reproducible() -> Generator[None, None, None]:
    """Ask cuDNN for the same bits every time and for full float32 products; the flags are put back afterwards."""
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
