"""`train-client bench deltas`: what pushes of full fine-tuning weigh and take, whole and as deltas, to the last bit.

A Phi trains all its weights with AdamW at the paper's learning rate, at which a step changes a weight by about a
thousandth of it; how many bits that is doesn't depend on how many weights there are. After every K steps its weights
are pushed as they are and in bfloat16.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PhiConfig, PhiForCausalLM

from shared.delta import apply_delta, encode_delta
from shared.errors import WeightsError
from train_client.experiment.collect import write_json
from train_client.machine import machine, versions
from train_client.snapshot import Snapshot
from train_client.trained import TrainedTensors

_MODEL = PhiConfig(
    vocab_size=4096, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8
)  # fmt: skip
_LEARNING_RATE = 2e-5
_ROWS, _TOKENS = 4, 128
# AdamW's first steps are larger than those that follow.
_WARMUP_STEPS = 20
_PUSHES, _QUICK_PUSHES = 7, 3
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Measured:
    """Pushes of one kind; medians.

    Attributes:
        push_every: Steps between two.
        dtype: What is pushed.
        whole_bytes: A push as it is.
        delta_bytes: The same as a delta to the one before.
        encode_seconds: On the trainer, in the background.
        rebuild_seconds: On the server.
    """

    push_every: int
    dtype: str
    whole_bytes: int
    delta_bytes: int
    encode_seconds: float
    rebuild_seconds: float

    @property
    def pays_below_bytes_per_s(self) -> float:
        """The speed of a link at which a delta is as long under way as the whole."""
        return (self.whole_bytes - self.delta_bytes) / (self.encode_seconds + self.rebuild_seconds)


def run(*, out: Path, quick: bool, console: Console) -> None:
    """Measure, print a table, write `result.json` under `out`.

    Raises:
        WeightsError: a delta that isn't shorter, or is rebuilt to other weights than were pushed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for push_every in (1, 8) for row in _measure(push_every, _QUICK_PUSHES if quick else _PUSHES)]
    finally:
        torch.set_num_threads(threads)
    console.print(_table(rows))
    figures = [asdict(row) | {"pays_below_bytes_per_s": row.pays_below_bytes_per_s} for row in rows]
    result = {"quick": quick, "machine": machine(), "versions": versions(), "figures": figures}
    write_json(out / "result.json", result)


def _measure(push_every: int, pushes: int) -> list[Measured]:
    torch.manual_seed(0)
    model = PhiForCausalLM(_MODEL).train()
    optimizer, trained = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE), TrainedTensors(model)

    def train(steps: int) -> None:
        for _ in range(steps):
            ids = torch.randint(0, _MODEL.vocab_size, (_ROWS, _TOKENS))
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def payload(dtype: str) -> memoryview:
        snapshot = Snapshot(trained.now(), dtype=dtype)
        snapshot.take(trained.now())
        return snapshot.payload()

    train(_WARMUP_STEPS)
    before = {dtype: payload(dtype) for dtype in _DTYPES}
    found: dict[str, list[tuple[int, float, float]]] = {dtype: [] for dtype in _DTYPES}
    for _ in range(pushes):
        train(push_every)
        for dtype in _DTYPES:
            after = payload(dtype)
            found[dtype].append(_push(before[dtype], after))
            before[dtype] = after
    return [
        Measured(push_every, dtype, len(before[dtype]), round(size), encode, rebuild)
        for dtype, each in found.items()
        for size, encode, rebuild in [tuple(map(statistics.median, zip(*each, strict=True)))]
    ]


def _push(before: memoryview, after: memoryview) -> tuple[int, float, float]:
    """Bytes of a delta, and the seconds to make it and to rebuild from it."""
    began = time.perf_counter()
    delta = encode_delta(before, after)
    made = time.perf_counter()
    if delta is None:
        raise WeightsError(f"a delta of {len(after)} bytes of weights came out no shorter than they are")
    rebuilt = apply_delta(before, delta)
    ended = time.perf_counter()
    if rebuilt != after:
        raise WeightsError("a delta was rebuilt to other weights than were pushed")
    return len(delta), made - began, ended - made


def _table(rows: list[Measured]) -> Table:
    table = Table(title="A push of all weights; one thread on each side")
    for heading in ("every", "in", "whole", "delta", "of the whole", "made at", "rebuilt at", "pays on links below"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.push_every} steps",
            row.dtype,
            f"{row.whole_bytes / 1e6:.1f} MB",
            f"{row.delta_bytes / 1e6:.1f} MB",
            f"{row.delta_bytes / row.whole_bytes:.0%}",
            f"{row.whole_bytes / row.encode_seconds / 1e6:.0f} MB/s",
            f"{row.whole_bytes / row.rebuild_seconds / 1e6:.0f} MB/s",
            f"{8 * row.pays_below_bytes_per_s / 1e6:.0f} Mbit/s",
        )
    return table
