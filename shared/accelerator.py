"""An accelerator's memory and how busy it is, as far as PyTorch can tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AcceleratorUse:
    """At one moment.

    Attributes:
        name: Of the device, such as `cuda:0`.
        held_bytes: What PyTorch holds for tensors.
        peak_bytes: The most it has held.
        size_bytes: All of the device's memory.
        busy_ratio: Share of the last moments that it was computing; None where its driver's library isn't installed.
    """

    name: str
    held_bytes: int
    peak_bytes: int
    size_bytes: int
    busy_ratio: float | None


def accelerator_use(device: torch.device) -> AcceleratorUse | None:
    """How a device is used now; None on a processor, whose memory is the process's own."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return AcceleratorUse(
        name=f"cuda:{index}",
        held_bytes=torch.cuda.memory_allocated(index),
        peak_bytes=torch.cuda.max_memory_allocated(index),
        size_bytes=torch.cuda.get_device_properties(index).total_memory,
        busy_ratio=_busy_ratio(index),
    )


def _busy_ratio(index: int) -> float | None:
    try:
        return float(torch.cuda.utilization(index)) / 100
    except (ModuleNotFoundError, RuntimeError):  # without NVIDIA's management library, or where it may not be asked
        return None
