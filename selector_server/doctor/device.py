"""Looks at the device that scores: whether it is there, and whether the model fits in its memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from selector_server.scale_out.place import Place
from shared.config import Config
from shared.doctor.finding import Finding
from shared.doctor.inputs import announced_weights


def device(config: Config) -> Iterable[Finding]:
    """Whether `server.device` is there and has room for the model.

    Raises:
        SubbatchError: no such device, or a model whose files are damaged.
    """
    chosen = Place().device(config.server.device)
    free = _free_bytes(chosen)
    needed = announced_weights(config.model).bytes
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen)
    if free is None:
        yield Finding("device", "ok", f"{name}; how much memory is free can't be told")
        return
    what = f"{name} has {free / 2**30:.1f} GiB free, the model takes {needed / 2**30:.1f} GiB and activations more"
    if needed > free:
        remedy = "choose another server.device, or model.dtype = 'bfloat16'"
        yield Finding("device", "problem", what, remedy)
    elif needed > 0.8 * free:
        yield Finding("device", "warning", what, "lower selection.score_tokens if scoring runs out of memory")
    else:
        yield Finding("device", "ok", what)


def _free_bytes(chosen: torch.device) -> int | None:
    if chosen.type == "cuda":
        return int(torch.cuda.mem_get_info(chosen)[0])
    meminfo = Path("/proc/meminfo")
    if chosen.type != "cpu" or not meminfo.exists():
        return None
    available = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(available[0].split()[1]) * 1024 if available else None
