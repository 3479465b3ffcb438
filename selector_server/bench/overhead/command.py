"""`selector-server bench overhead`: rounds of one step's operations, to a table, a picture and `result.json`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from selector_server.bench.overhead.calls import Calls, serving
from selector_server.bench.overhead.measured import KINDS, LIMIT, SIDES, STEP_SECONDS, Measured
from selector_server.bench.overhead.operations import DurableStep, Operation
from selector_server.bench.overhead.shown import as_json, cost_table, draw
from selector_server.bench.paired import Interval, median_interval, write_result
from selector_server.bench.workload import make_model, make_store
from selector_server.engine import Selected, SelectionEngine
from shared.config import ClientConfig, Config, ServerConfig
from shared.records import Fingerprints, RunInfo
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from shared.weights import encode_weights, tensor_specs

PRESETS = ("paper", "matched")
# By name, the shape of one float32 tensor that is as large as an adapter: rank 16 on a Phi of 8 layers of width 256,
# and the paper's, rank 128 on Phi-2; with rounds that take no minutes, which 335 MB on a slow disk else would.
ADAPTERS = {"small": (1 << 20,), "phi2": (83_886_080,)}
ROUNDS = {"small": 15, "phi2": 7}

_VOCABULARY, _LORA_RANK = 4096, 16
_RANKS = 4
_PING_SECONDS = 3.0  # shared/transport.py: grpc.keepalive_time_ms


def run(*, out: Path, quick: bool, console: Console, config: Config | None = None) -> dict[str, Any]:
    """Measure, print a table for each preset and adapter, draw `overhead.png`, write `result.json` under `out`.

    Raises:
        ConfigError: `out` can't be written, or a token or TLS file can't be used.
    """
    server, client = (config.server, config.client) if config else (ServerConfig(), ClientConfig())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = [(preset, "small") for preset in PRESETS]
    if not quick:  # what large weights cost doesn't depend on the preset
        settings.append((PRESETS[0], "phi2"))
    found = []
    try:
        for preset, adapter in settings:
            with tempfile.TemporaryDirectory(dir=out) as folder:
                measured = _measure(preset, adapter, Path(folder), server, client)
            console.print(cost_table(measured))
            found.append(measured)
    finally:
        torch.set_num_threads(threads)
    result = {
        "quick": quick,
        "step_seconds": STEP_SECONDS,
        "limit": LIMIT,
        "ranks": _RANKS,
        "tls": client.tls is not None,
        "token": client.token_file is not None,
        "settings": [as_json(measured) for measured in found],
    }
    write_result(out, result)
    draw(found, out / "overhead.png")
    return result


def _select(preset: str) -> Selected:
    """A selection of the default size, 64 of 128 rows, with what it was picked from."""
    model = make_model(vocab_size=_VOCABULARY, lora_rank=_LORA_RANK, device=torch.device("cpu"))
    store = make_store(num_rows=2000, vocab_size=_VOCABULARY)
    return SelectionEngine(model, store, SelectionConfig(preset=preset), run="bench", seed=0).select(0, 0)


def _measure(
    preset: str,
    adapter: str,
    folder: Path,
    server: ServerConfig,
    client: ClientConfig,
) -> Measured:
    tensors = {"adapter": torch.full(ADAPTERS[adapter], 0.5)}
    payload, specs = encode_weights(tensors), tensor_specs(tensors)
    store = make_store(num_rows=2000, vocab_size=_VOCABULARY)
    info = RunInfo(
        name="bench",
        seed=0,
        timing=Timing(num_steps=1_000_000, staleness=1, push_every=1, lookahead=1),
        world_size=_RANKS,
        selection=SelectionConfig(preset=preset),
        adapter_json="",
        trainable=(),
        fingerprints=Fingerprints(store.fingerprint, "none", {"float32": "none"}),
    )
    with (
        serving(folder / "served", store, info, server, client) as calls,
        closing(DurableStep(folder / "journal", _select(preset), payload, specs)) as step,
    ):
        operations = (*step.operations(), *_calls(calls))
        seconds = [_round(operations) for _ in range(1 + ROUNDS[adapter])][1:]  # the first warms up
    return Measured(
        preset,
        adapter,
        len(payload),
        step.record_bytes,
        operations,
        tuple(map(median_interval, zip(*seconds, strict=True))),
        {
            (side, name): _total(operations, seconds, side, kinds)
            for side in SIDES
            for name, kinds in {**{kind: (kind,) for kind in KINDS}, "all": KINDS}.items()
        },
    )


def _calls(calls: Calls) -> list[Operation]:
    pings = 1 / _PING_SECONDS
    return [
        Operation("server", f"reports of {_RANKS} ranks", "beside", _RANKS, calls.report),
        Operation("server", f"keep-alive of {_RANKS} ranks, at most as dear", "beside", _RANKS * pings, calls.report),
        Operation("trainer", "report", "beside", 1, calls.report),
        Operation("trainer", "keep-alive, at most as dear", "beside", pings, calls.report),
    ]


def _round(operations: Sequence[Operation]) -> list[float]:
    """Seconds of each operation, once."""
    seconds = []
    for operation in operations:
        clock = time.perf_counter()
        operation.do()
        seconds.append(time.perf_counter() - clock)
    return seconds


def _total(
    operations: Sequence[Operation], rounds: Sequence[Sequence[float]], side: str, kinds: Sequence[str]
) -> Interval:
    """The share of a step that a side spends; each round has its own total."""
    counts = [each.per_step * (each.side == side and each.kind in kinds) for each in operations]
    return median_interval(
        [sum(n * s for n, s in zip(counts, seconds, strict=True)) / STEP_SECONDS for seconds in rounds]
    )
