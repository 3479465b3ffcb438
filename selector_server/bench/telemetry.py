"""`selector-server bench telemetry`: what metrics and traces cost a server of one run with four ranks, per step."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from selector_server.bench.workload import make_store
from selector_server.collect import run_samples
from selector_server.counted import Counted
from selector_server.hosted_run import HostedRun
from selector_server.journal import Journal
from selector_server.run import Run
from shared.cost_per_step import SCRAPE_EVERY_S, STEP_SECONDS, Cost, tell_costs, timed
from shared.pb.v1 import selector_pb2 as pb
from shared.records import Fingerprints, RunInfo, Selection
from shared.scrape import routes
from shared.selection_config import SelectionConfig
from shared.source_labels import SourceLabels
from shared.telemetry_config import TraceConfig
from shared.timing import Timing
from shared.tracing import open_traces

_RANKS, _SOURCES = 4, 14
_BYTES = 4 << 20
# What OpenTelemetry holds between two exports is bounded, and more would be dropped.
_CALLS = 100


def run(*, out: Path, quick: bool, console: Console) -> dict[str, Any]:
    """Measure, print a table, write `result.json` under `out`."""
    rounds = 5 if quick else 15
    selection = SelectionConfig()
    store = make_store(num_rows=2000, vocab_size=256, num_sources=_SOURCES)
    batch = np.arange(selection.large_batch_size, dtype=np.int64) * 7
    picked = _selection(store, batch[: selection.sub_batch_size], selection.large_batch_size)
    counted = Counted.of(store, batch, picked)
    message = pb.SelectionMessage(
        times=pb.PhaseTimes(started_unix_ns=10**18, load_seconds=0.1, draw_seconds=0.1, score_seconds=0.4)
    )
    labels = SourceLabels(store.source_names, store.source_rows)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        here = Path(folder)
        hosted = HostedRun(_opened(here / "journal", selection), rank_lease_s=60.0)
        hosted.tally.selected(message, counted, journal_seconds=0.001)
        scrape = routes(lambda: run_samples(hosted, labels, now=0.0), not_ready=str)["/metrics"]
        with (
            closing(hosted.run.journal),
            closing(
                open_traces(TraceConfig(export="file", folder=here), service="selector", instance="bench")
            ) as traces,
        ):
            traced = HostedRun(hosted.run, rank_lease_s=60.0, traces=traces)

            def selected() -> None:
                traced.trace_selection(message, journal_seconds=0.001)

            def sent() -> None:
                with traced.sending(0, 0, 1000):
                    pass

            def untraced() -> None:
                with hosted.sending(0, 0, 1000):
                    pass

            def measure(do: Any, **options: Any) -> float:
                return timed(do, rounds=rounds, count=_CALLS, **options)

            flush = {"afterwards": traces.flush}
            costs = [
                Cost("rows of a step counted", "metrics", measure(lambda: Counted.of(store, batch, picked)), 1),
                Cost(
                    "selection counted",
                    "metrics",
                    measure(lambda: hosted.tally.selected(message, counted, journal_seconds=0.001)),
                    1,
                ),
                Cost("what the run is at", "metrics", measure(hosted.enter_what_it_waits_for), 2 + _RANKS),
                Cost("selection sent, counted", "metrics", measure(untraced), _RANKS),
                Cost("push counted", "metrics", measure(lambda: hosted.stored_weights(1, _BYTES, 0.1)), 1),
                Cost(
                    f"scrape every {SCRAPE_EVERY_S:g} s",
                    "metrics",
                    timed(lambda: scrape({}), rounds=rounds, count=10),
                    STEP_SECONDS / SCRAPE_EVERY_S,
                ),
                Cost("selection traced and written", "traces", measure(selected, **flush), 1),
                Cost("selection sent, traced and written", "traces", measure(sent, **flush), _RANKS),
                Cost(
                    "push traced and written",
                    "traces",
                    measure(lambda: traced.stored_weights(1, _BYTES, 0.1), **flush),
                    1,
                ),
            ]
    return tell_costs(costs, out, console, end="a server of one run with four ranks")


def _selection(store: Any, rows: Any, large_batch_size: int) -> Selection:
    ones = np.ones(len(rows), dtype=np.float32)
    source, lengths = store.sources_of(rows).astype(np.int32), store.lengths(rows).astype(np.int32)
    return Selection("bench", 0, 0, large_batch_size, rows, source, ones, ones, lengths)


def _opened(folder: Path, selection: SelectionConfig) -> Run:
    run = Run(Journal(folder))
    info = RunInfo("bench", 0, Timing(1000, 1, 1, 1), _RANKS, selection, "", (), Fingerprints("data", "tokenizer"))
    run.open(info, cursor=0, restart=False, open_id="bench")
    return run
