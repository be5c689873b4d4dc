"""What every test shares: one thread, hypothesis without a clock, and GPU tests skipped where there is no GPU."""

import os

import pytest
from hypothesis import settings

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "untyped: passes what the annotations forbid; skipped where they are enforced")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # the problems here are tiny; numpy and torch read this when first imported
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    skips = {}
    if not torch.cuda.is_available():
        skips["gpu"] = "needs a CUDA device; torch sees none on this machine"
    if config.getoption("jaxtyping_packages", None):
        skips["untyped"] = "passes what the annotations forbid, and jaxtyping enforces them in this run"
    for item in items:
        for marker, reason in skips.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
