"""The values of a server's metrics at one moment, read from what its parts know anyway.

Scrapes come in threads. What belongs to the event loop is read there; disks and devices are asked in the thread.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from selector_server import metrics as m
from selector_server.answering import REFUSED
from selector_server.host import Host
from selector_server.hosted_run import HostedRun
from selector_server.readiness import Readiness
from shared.accelerator import accelerator_use
from shared.durations import Durations
from shared.metric import Metric
from shared.sample import Sample
from shared.source_labels import SourceLabels

# A loop that is busy for longer is in trouble; the scrape fails, which Prometheus shows.
_PATIENCE_S = 5.0


class Collector:
    """Reads one server."""

    def __init__(self, host: Host, readiness: Readiness, sources: SourceLabels, *, device: torch.device, version: str):
        """Prepare; called on the event loop.

        Args:
            host: The server's runs.
            readiness: Whether it can serve.
            sources: Labels of its store's sources.
            device: Where this process scores.
            version: Of this package.
        """
        self._host, self._readiness, self._sources = host, readiness, sources
        self._device, self._version = device, version
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> list[Sample]:
        """All values; called in any thread but the loop's.

        Raises:
            TimeoutError: the event loop doesn't answer.
        """
        future = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            samples, folders = future.result(_PATIENCE_S)
        finally:
            future.cancel()
        samples.extend(self._disk(folders))
        samples.extend(device_samples(self._device))
        return samples

    async def _read(self) -> tuple[list[Sample], dict[str, Path]]:
        runs = self._host.open_runs
        samples = list(self._of_server(len(runs)))
        for hosted in runs:
            samples.extend(run_samples(hosted, self._sources, now=time.monotonic()))
        return samples, {hosted.run.info.name: hosted.run.journal.folder for hosted in runs}

    def _of_server(self, open_runs: int) -> Iterator[Sample]:
        yield Sample(m.BUILD, 1, (self._version, self._device.type))
        yield Sample(m.READY, not self._readiness.why_not)
        yield Sample(m.OPEN_RUNS, open_runs)
        yield Sample(m.MAX_RUNS, self._host.max_runs)
        yield Sample(m.SCORING_PROCESSES, self._host.scoring_processes)
        for labels, count in sorted(REFUSED.items()):
            yield Sample(m.REFUSED_CALLS, count, labels)

    def _disk(self, folders: dict[str, Path]) -> Iterator[Sample]:
        usage = shutil.disk_usage(self._host.folder)
        yield Sample(m.DISK_FREE, usage.free)
        yield Sample(m.DISK_SIZE, usage.total)
        for run, folder in folders.items():
            yield Sample(m.JOURNAL_BYTES, _size(folder), (run,))
            yield Sample(m.WEIGHTS_BYTES, _size(folder / "weights"), (run,))


def run_samples(hosted: HostedRun, sources: SourceLabels, *, now: float) -> Iterator[Sample]:
    """The values of one run; called on the event loop.

    Args:
        hosted: The run, which is open.
        sources: Labels of its sources.
        now: The time, on the clock of `time.monotonic`.
    """
    run, tally = hosted.run, hosted.tally
    name, timing = run.info.name, run.info.timing
    completed, away = dict(run.completed), set(hosted.leases.away)
    here = [steps for rank, steps in completed.items() if rank not in away] or list(completed.values())
    values: dict[Metric, float | Durations] = {
        m.STEPS: timing.num_steps,
        m.NEXT_STEP: run.next_step,
        m.STEPS_AHEAD: run.next_step - min(here),
        m.LOOKAHEAD: timing.lookahead,
        m.SELECTIONS: tally.selections,
        m.SELECTION_SECONDS: tally.selection_seconds,
        m.TOKENS_DRAWN: tally.drawn_tokens,
        m.TOKENS_PICKED: tally.picked_tokens,
        m.ROWS_SKIPPED: tally.skipped,
        m.STALENESS: tally.staleness,
        m.SENT: tally.sent,
        m.SENT_BYTES: tally.sent_bytes,
        m.PUSHES: tally.pushes,
        m.PUSH_BYTES: tally.push_bytes,
        m.PUSH_SECONDS: tally.push_seconds,
        m.OPENINGS: run.incarnation,
        m.REWOUND: run.num_set_aside,
        m.FALLBACKS: run.num_fallback,
    }
    for metric, value in values.items():
        yield Sample(metric, value, (name,))
    for phase, seconds in tally.phases.items():
        yield Sample(m.PHASE_SECONDS, seconds, (name, phase))
    for state, seconds in tally.clock.seconds(now).items():
        yield Sample(m.STATE, state == tally.clock.state, (name, state))
        yield Sample(m.STATE_SECONDS, seconds, (name, state))
    yield Sample(m.RANKS, len(completed) - len(away), (name, "here"))
    yield Sample(m.RANKS, len(away), (name, "gone"))
    silent = hosted.leases.silent_seconds(now)
    for rank, steps in completed.items():
        yield Sample(m.RANK_COMPLETED, steps, (name, str(rank)))
        yield Sample(m.RANK_SILENT, silent.get(rank, 0.0), (name, str(rank)))
    for total, by_source, counts in (
        (m.ROWS_DRAWN, m.SOURCE_DRAWN, tally.drawn),
        (m.ROWS_PICKED, m.SOURCE_PICKED, tally.picked),
    ):
        yield Sample(total, 0 if counts is None else int(counts.sum()), (name,))
        for source, count in sources.label(counts).items() if counts is not None else ():
            yield Sample(by_source, count, (name, source))


def device_samples(device: torch.device) -> Iterator[Sample]:
    """How the accelerator is used, where there is one."""
    use = accelerator_use(device)
    if use is None:
        return
    yield Sample(m.DEVICE_MEMORY, use.held_bytes, (use.name,))
    yield Sample(m.DEVICE_MEMORY_PEAK, use.peak_bytes, (use.name,))
    yield Sample(m.DEVICE_MEMORY_SIZE, use.size_bytes, (use.name,))
    if use.busy_ratio is not None:
        yield Sample(m.DEVICE_BUSY, use.busy_ratio, (use.name,))


def _size(folder: Path) -> int:
    """Bytes of the files that are in a folder, without those below it; files may come and go meanwhile."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return total
