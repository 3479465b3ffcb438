"""`train-client bench push`: what a push of a Phi-2 adapter, 335 MB, costs the thread that trains.

A training loop runs with a push in the background and without one, the same number of steps each, in turns. What the
push costs the loop's thread is the snapshot, which it makes itself, and the time it is blocked while the upload holds
the interpreter lock. What it loses because two threads share the processors and the memory is contention: it depends on
how many there are, and stands apart.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import PhiConfig, PhiForCausalLM

from shared.config import ClientConfig
from shared.model import trainable_tensors
from train_client.bench.thread_time import ThreadTime, thread_time
from train_client.client import SelectorClient
from train_client.experiment.collect import write_json
from train_client.machine import machine, versions
from train_client.process import Command
from train_client.push import Pusher
from train_client.trained import TrainedTensors

LIMIT_MS = 250.0
_PUSHES, _QUICK_PUSHES = 15, 7
# Phi-2's attention with the paper's rank: 256 tensors, 335,544,320 bytes in float32.
_WIDTH, _LAYERS, _HEADS, _RANK = 2560, 32, 32, 128
_MODULES = ("q_proj", "k_proj", "v_proj", "dense")
# What trains meanwhile: small, so that its Python shows; a large model's thread needs the interpreter less often.
_LOOP = PhiConfig(
    vocab_size=1024, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8
)  # fmt: skip
_ROWS, _TOKENS = 4, 128

_COLUMNS = {
    "snapshot_ms": "snapshot",
    "blocked_ms": "blocked while it uploads",
    "cost_ms": "cost of a push",
    "queueing_ms": "queueing for a processor",
    "slower_ms": "slower on it",
    "upload_ms": "until it is durable",
}


@dataclass(frozen=True)
class Push:
    """One push and as many steps without one. Of the training thread unless a name says otherwise; milliseconds.

    Attributes:
        steps: Steps while it was under way.
        snapshot_ms: To take the snapshot, queueing left out.
        blocked_ms: Blocked during these steps, less what as many steps without a push are.
        queueing_ms: Ready to compute while no processor was free, snapshot included, less the same.
        slower_ms: More time on a processor for the same steps: caches and memory are shared.
        upload_ms: From the push until it is durable, in the background.
    """

    steps: int
    snapshot_ms: float
    blocked_ms: float
    queueing_ms: float
    slower_ms: float
    upload_ms: float

    @property
    def cost_ms(self) -> float:
        """What the push costs the training thread on a machine with processors to spare."""
        return self.snapshot_ms + self.blocked_ms


def run(*, out: Path, quick: bool, console: Console) -> None:
    """Measure, print a table, write `result.json` under `out`.

    Raises:
        ConfigError: a system without scheduler statistics, or `out` can't be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapter, step = make_adapter(device), make_loop(device)
    tensors = trainable_tensors(adapter)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    console.print(f"{len(tensors)} tensors, {num_bytes / 1e6:.0f} MB, on {device}; one thread trains")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, _sink(Path(folder) / "sink.log") as sink:
            address = sink.first_line().strip()
            first, *pushes = _measure(adapter, step, address, count=1 + (_QUICK_PUSHES if quick else _PUSHES))
    finally:
        torch.set_num_threads(threads)
    figures = {name: _summary([getattr(push, name) for push in pushes]) for name in _COLUMNS}
    console.print(_table(figures, len(pushes)))
    cost = figures["cost_ms"]["median"]
    verdict = "at most" if cost <= LIMIT_MS else "MORE THAN"
    console.print(
        f"A push costs the training thread {cost:.0f} ms, {verdict} {LIMIT_MS:.0f} ms; "
        f"the very first, which allocates, {first.cost_ms:.0f} ms.",
        highlight=False,
    )
    write_json(
        out / "result.json",
        {
            "quick": quick,
            "machine": machine(),
            "versions": versions(),
            "device": str(device),
            "bytes": num_bytes,
            "tensors": len(tensors),
            "limit_ms": LIMIT_MS,
            "figures": figures,
            "first": _as_json(first),
            "pushes": [_as_json(push) for push in pushes],
        },
    )


def make_adapter(device: torch.device) -> Any:
    """Phi-2's adapter with random weights on `device`; the base is a shape without memory."""
    with torch.device("meta"):
        base = PhiForCausalLM(
            PhiConfig(hidden_size=_WIDTH, num_hidden_layers=_LAYERS, num_attention_heads=_HEADS, intermediate_size=8)
        )
        model = get_peft_model(base, LoraConfig(r=_RANK, target_modules=list(_MODULES), task_type="CAUSAL_LM"))
    generator = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, device=device, generator=generator)
                setattr(module, name, torch.nn.Parameter(values))
    return model


def make_loop(device: torch.device) -> Callable[[], None]:
    """One step of training a small Phi: forward, backward, AdamW, and its loss as a number."""
    torch.manual_seed(0)
    model = PhiForCausalLM(_LOOP).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, _LOOP.vocab_size, (_ROWS, _TOKENS), device=device)

    def step() -> None:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _sink(log: Path) -> Command:
    return Command("the sink", "-m", "train_client.bench.push_sink", log=log, read_output=True, dies_with_us=True)


def _measure(adapter: Any, step: Callable[[], None], address: str, *, count: int) -> list[Push]:
    client = SelectorClient(ClientConfig(selector=address), run="push", rank=0)
    durable = threading.Event()

    def upload(version: int, payload: memoryview, before: memoryview | None) -> None:
        try:
            client.push(version, payload)
        finally:
            durable.set()

    pusher = Pusher(upload, run="push")
    trained, pushes = TrainedTensors(adapter), []
    try:
        step()
        for version in range(count):
            durable.clear()
            begun = thread_time()
            pusher.push(version, trained.now())
            snapshot = thread_time() - begun
            steps = 0
            while not durable.is_set():
                step()
                steps += 1
            pushing = thread_time() - begun
            pusher.before_overwriting()
            pusher.wait_durable()
            pushes.append(_compare(snapshot, pushing, _time_alone(step, steps), steps))
    finally:
        pusher.close()
        client.close()
    return pushes


def _time_alone(step: Callable[[], None], steps: int) -> ThreadTime:
    begun = thread_time()
    for _ in range(steps):
        step()
    return thread_time() - begun


def _compare(snapshot: ThreadTime, pushing: ThreadTime, alone: ThreadTime, steps: int) -> Push:
    """What one push cost.

    Args:
        snapshot: While the snapshot was taken.
        pushing: From then on until the push was durable, the snapshot included.
        alone: As many steps without a push.
        steps: How many that were.
    """
    stepping = pushing - snapshot
    return Push(
        steps=steps,
        snapshot_ms=1e3 * (snapshot.wall - snapshot.queueing),
        blocked_ms=1e3 * (stepping.blocked - alone.blocked),
        queueing_ms=1e3 * (pushing.queueing - alone.queueing),
        slower_ms=1e3 * (stepping.computing - alone.computing),
        upload_ms=1e3 * pushing.wall,
    )


def _summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range; of seven values or more, the range holds the true median with a confidence over 98 %."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _as_json(push: Push) -> dict[str, float]:
    return {"steps": push.steps, **{name: getattr(push, name) for name in _COLUMNS}}


def _table(figures: Mapping[str, Mapping[str, float]], pushes: int) -> Table:
    table = Table(
        title=f"One push, milliseconds of the training thread: medians of {pushes}, least and most",
        caption="queueing and slower are contention for processors and memory, and no part of the cost",
    )
    table.add_column("")
    for heading in ("median", "least", "most"):
        table.add_column(heading, justify="right")
    for name, title in _COLUMNS.items():
        cells = (f"{figures[name][key]:,.0f}" for key in ("median", "least", "most"))
        table.add_row(title, *cells, style="bold" if name == "cost_ms" else None)
    return table
