"""What one process does with a store: `python -m selector_server.bench.store.serving STORE ORDER`.

The engine is that of a server, and selects from real rows with a small model; what is printed is how long opening and
drawing took, and how much memory the process holds after every selection.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from selector_server.bench.peak_memory import reset_peak, resident_bytes
from selector_server.bench.store.synthetic import VOCABULARY
from selector_server.bench.workload import ModelSize, make_model
from selector_server.engine import SelectionEngine
from shared.dataset import ROWS_FILE, Store
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig

_MODEL = ModelSize(layers=2, width=64)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Order:
    """What is done.

    Attributes:
        draws: Large batches drawn by each kind of sampling.
        selections: Selections made after that.
    """

    large_batch_size: int
    draws: int
    selections: int


@dataclass(frozen=True)
class Served:
    """How it went.

    Attributes:
        cold_open_seconds, open_seconds: Opening a store that isn't in the system's cache, and then once more.
        cold_draw_seconds: The first large batch, right after the first opening.
        draw_seconds: Every later one, by sampling: its rows' numbers, sources and lengths.
        read_seconds: Reading the rows of a large batch.
        start_bytes: Resident memory before the store was opened; it, and the rest, None where the system doesn't tell.
        resident_bytes: Resident memory after each selection, mapped pages of the store included.
        peak_bytes: The most resident memory since the store was opened.
    """

    cold_open_seconds: float
    open_seconds: float
    cold_draw_seconds: float
    draw_seconds: dict[str, list[float]]
    read_seconds: list[float]
    start_bytes: int | None
    resident_bytes: list[int] | None
    peak_bytes: int | None


def serve(folder: Path, order: Order) -> Served:
    """Have a process of its own open a store, draw and select."""
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(folder), json.dumps(asdict(order))]
    return Served(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def _serve(folder: Path, order: Order) -> Served:
    selection = SelectionConfig(large_batch_size=order.large_batch_size, sub_batch_size=order.large_batch_size // 2)
    model = make_model(vocab_size=VOCABULARY, lora_rank=4, device=_CPU, size=_MODEL)
    tells = Path("/proc/self/clear_refs").exists()
    if tells:
        reset_peak()
    start = resident_bytes("VmRSS") if tells else None
    _forget(folder / ROWS_FILE)
    clock = time.perf_counter()
    store = Store.open(folder)
    cold_open = time.perf_counter() - clock
    cold_draw = _seconds(lambda: _draw(store, selection, 0))
    opened = _seconds(lambda: Store.open(folder))
    samplings = {kind: selection.model_copy(update={"sampling": kind}) for kind in ("inverse_source", "uniform")}
    draws = {
        kind: [_seconds(lambda step=step, each=each: _draw(store, each, step)) for step in range(1, order.draws + 1)]  # type: ignore[misc]
        for kind, each in samplings.items()
    }
    engine = SelectionEngine(model, store, selection, run="bench", seed=1)
    reads, resident = [], []
    for step in range(order.selections):
        batch = draw_large_batch(store.source_rows, selection, seed=2, step=step)
        reads.append(_seconds(lambda batch=batch: store.rows(batch)))  # type: ignore[misc]
        engine.select(step, 0)
        resident.append(resident_bytes("VmRSS") if tells else 0)
    peak = resident_bytes("VmHWM") if tells else None
    return Served(cold_open, opened, cold_draw, draws, reads, start, resident if tells else None, peak)


def _draw(store: Store, selection: SelectionConfig, step: int) -> None:
    """What a server has to know of a large batch before it scores."""
    batch = draw_large_batch(store.source_rows, selection, seed=0, step=step)
    store.sources_of(batch)
    store.lengths(batch)


def _seconds(work: Callable[[], object]) -> float:
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def _forget(file: Path) -> None:
    """Ask the system to drop a file from its cache, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Do what the order says, and print how it went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("order", type=json.loads)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(asdict(_serve(arguments.folder, Order(**arguments.order)))))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
