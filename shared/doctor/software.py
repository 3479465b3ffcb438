"""Looks at what is installed: packages against what this release needs, PyTorch against the machine's GPUs."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from shared.doctor.finding import Finding

_NVIDIA = Path("/proc/driver/nvidia/version")


def packages() -> Iterable[Finding]:
    """Whether every package that this release needs is there, in a version that will do."""
    wanted = [Requirement(text) for text in requires("subbatch") or ()]
    unmet = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            have = ""
        if not requirement.specifier.contains(have or "0", prereleases=True) or not have:
            unmet.append(f"{requirement.name} {have or 'is missing'} (needed: {requirement.specifier or 'any'})")
    about = f"subbatch {version('subbatch')} on Python {platform.python_version()}"
    if unmet:
        yield Finding("versions", "problem", f"{about}: {', '.join(unmet)}", "pip install --upgrade subbatch")
        return
    yield Finding("versions", "ok", f"{about}, PyTorch {version('torch')}, transformers {version('transformers')}")


def gpu_driver(name: str) -> Iterable[Finding]:
    """Whether PyTorch finds the GPUs whose driver is loaded.

    Args:
        name: The device that the configuration asks for.
    """
    import torch

    built_for = torch.version.cuda or torch.version.hip
    if name != "cpu" and _NVIDIA.exists() and not torch.cuda.is_available():
        yield Finding(
            "device",
            "warning",
            f"an NVIDIA driver is loaded, PyTorch {torch.__version__} (for {built_for or 'CPUs'}) finds no GPU",
            "install a CUDA build of PyTorch that the driver can run (`nvidia-smi` shows the newest CUDA it knows), or "
            "see whether CUDA_VISIBLE_DEVICES hides the GPUs",
        )
