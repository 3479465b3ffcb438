"""How much memory scoring takes at its peak, in a process of its own: `python -m selector_server.bench.peak_memory`.

On a CPU it is what the process's resident memory rises by while it scores, which includes everything, NumPy and the
kernels' own buffers too; on a GPU what torch's allocator says. Weights and their float32 copies are there before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from selector_server.bench.workload import SMALL, ModelSize, make_model, make_store
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer
from shared.selection_config import SelectionConfig


def peak_bytes(
    selection: SelectionConfig, *, vocab_size: int, lora_rank: int, device: torch.device, size: ModelSize = SMALL
) -> int | None:
    """What scoring one large batch adds to the memory that is in use, at its peak, in a fresh process.

    None on a CPU whose system doesn't tell; Linux does.
    """
    if device.type != "cuda" and not Path("/proc/self/clear_refs").exists():
        return None
    order = {
        "selection": selection.model_dump_json(),
        "vocab_size": vocab_size,
        "lora_rank": lora_rank,
        "device": str(device),
        "size": asdict(size),
    }
    command = [sys.executable, "-W", "ignore", "-m", __name__, json.dumps(order)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Print the peak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("order", type=json.loads)
    order = parser.parse_args().order
    torch.set_num_threads(1)
    selection, device = SelectionConfig.model_validate_json(order["selection"]), torch.device(order["device"])
    shape = {"vocab_size": order["vocab_size"], "lora_rank": order["lora_rank"], "size": ModelSize(**order["size"])}
    model = make_model(device=device, **shape)
    count = selection.large_batch_size
    rows = make_store(num_rows=count, vocab_size=order["vocab_size"]).rows(np.arange(count))
    scorer = Scorer(model, device, gradient_of=selection.gradient_of, num_blocks=selection.num_blocks)
    probes = Probes(scorer.shape, seed=0, step=0, count=selection.num_probes)
    before = _start(device)
    scorer.score(rows, probes, selection)
    print(_peak(device) - before)  # noqa: T201 - the answer


def _start(device: torch.device) -> int:
    """Bytes in use; the peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    reset_peak()
    return resident_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated()) if device.type == "cuda" else resident_bytes("VmHWM")


def reset_peak() -> None:
    """Count this process's most resident memory, `VmHWM`, from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
