"""On what something was run: the machine, and the versions of what matters for its speed and its results."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("subbatch", "torch", "transformers", "peft", "accelerate", "numpy")


def machine() -> str:
    """This machine, in words."""
    return f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
