"""Versions of what computed a result, for its record."""

from __future__ import annotations

import platform
from importlib.metadata import version

from .. import __version__


def versions() -> dict[str, str]:
    """The versions of Python, this package and the libraries that decide the weights."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {"upweight": __version__, "python": platform.python_version(), **libraries}
