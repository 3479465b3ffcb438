"""`train-client bench telemetry`: what metrics and traces cost rank 0 of a training job, per step."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from shared.config import ClientConfig, RunConfig
from shared.cost_per_step import SCRAPE_EVERY_S, STEP_SECONDS, Cost, tell_costs, timed
from shared.records import Fingerprints, PhaseTimes, RunInfo, Selection
from shared.scrape import routes
from shared.selection_config import SelectionConfig
from shared.telemetry_config import TraceConfig
from shared.timing import Timing
from shared.tracing import open_traces
from train_client.collect import Collector
from train_client.plugin import StepReport
from train_client.ranks import Ranks
from train_client.source import ServerSource
from train_client.step_trace import StepTrace
from train_client.tally import Tally
from train_client.training_data import TrainingData

_SOURCES = 14
# What OpenTelemetry holds between two exports is bounded, and more would be dropped.
_CALLS = 100


def run(*, out: Path, quick: bool, console: Console) -> dict[str, Any]:
    """Measure, print a table, write `result.json` under `out`."""
    rounds = 5 if quick else 15
    selection = SelectionConfig()
    report = _report(selection)
    names = tuple(f"source {number}" for number in range(_SOURCES))
    data = TrainingData("data", "tokenizer", 255, names, (100,) * _SOURCES, None, "nowhere")
    info = RunInfo("bench", 0, Timing(1000, 1, 1, 1), 4, selection, "", (), Fingerprints("data", "tokenizer"))
    tally = Tally(_SOURCES)
    with tempfile.TemporaryDirectory(dir=out) as folder, closing(_source(data)) as source:
        collect = Collector(
            ClientConfig(),
            info,
            data,
            source,
            tally,
            first_step=0,
            device=torch.device("cpu"),
            gradient_match=lambda: None,
        )
        scrape = routes(collect, not_ready=str)["/metrics"]
        config = TraceConfig(export="file", folder=Path(folder))
        with closing(open_traces(config, service="trainer", instance="bench")) as traces:
            trace = StepTrace(traces, run="bench", rank=0, selects=False)
            now = time.time_ns()

            def measure(do: Any, **options: Any) -> float:
                return timed(do, rounds=rounds, count=_CALLS, **options)

            flush = {"afterwards": traces.flush}
            costs = [
                Cost("step counted", "metrics", measure(lambda: tally.add(report)), 1),
                Cost(
                    f"scrape every {SCRAPE_EVERY_S:g} s",
                    "metrics",
                    timed(lambda: scrape({}), rounds=rounds, count=10),
                    STEP_SECONDS / SCRAPE_EVERY_S,
                ),
                Cost("step traced and written", "traces", measure(lambda: trace.step(report), **flush), 1),
                Cost("push traced and written", "traces", measure(lambda: trace.pushed(1, 9, now, now), **flush), 1),
            ]
    return tell_costs(costs, out, console, end="rank 0 of a training job")


def _source(data: TrainingData) -> ServerSource:
    """A source that is never opened: it has counts to be read, and nobody to talk to."""
    model = torch.nn.Linear(2, 2)
    return ServerSource(ClientConfig(), model, data, Ranks(0, 1), run=RunConfig())


def _report(selection: SelectionConfig) -> StepReport:
    """A step that waited for its selection."""
    r, now = selection.sub_batch_size, time.time_ns()
    rows = np.arange(r, dtype=np.int64)
    source, lengths = (rows % _SOURCES).astype(np.int32), np.full(r, 200, dtype=np.int32)
    ones = np.ones(r, dtype=np.float32)
    times = PhaseTimes(now - 10**9, 0.1, 0.01, 0.7, 0.1, 0.001)
    chosen = Selection("bench", 1, 0, selection.large_batch_size, rows, source, ones, ones, lengths)
    return StepReport(chosen, rows.tolist(), 1.0, 1000, 2000, now, now - 10**8, 0.1, 0.0, 0.8, 0.1, 0.01, times)
