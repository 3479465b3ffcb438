"""A run with what serving it takes: its lock, its listeners, its trainer's pace, its engine once it is needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from selector_server.changes import Signal
from selector_server.counted import Counted
from selector_server.deadline import Pace
from selector_server.engine import SelectionEngine
from selector_server.leases import Leases, ranks_in_words
from selector_server.live.recent import Recent
from selector_server.outgoing import Outgoing
from selector_server.run import Run
from selector_server.run_engine import Pushed
from selector_server.tally import Tally
from shared.pb.v1 import selector_pb2 as pb
from shared.spans import Span, Traces, selection_spans

logger = logging.getLogger(__name__)


class HostedRun:
    """One run of a server; used on the server's event loop alone.

    Attributes:
        published: Fires where the streams of selections have something to do; not at every rank's report, or each
            report of one rank would wake all.
        changed: Fires at any change.
        outgoing: What the streams send.
        pushed: The newest weights that no selection has loaded yet; None where there are none, or on the disk alone.
        recent: The newest steps, for those who look at the run.
        receive_seconds: By version, how long its push took, until the selection that uses it first tells the ranks.
        tally: What was done for it, for metrics.
    """

    def __init__(self, run: Run, *, rank_lease_s: float, traces: Traces | None = None) -> None:
        self.run = run
        self.lock = asyncio.Lock()
        self.published, self.changed = Signal(), Signal()
        self.outgoing = Outgoing(run)
        self.engine: SelectionEngine | None = None
        self.pushed: Pushed | None = None
        self.receive_seconds: dict[int, float] = {}
        self.tally = Tally()
        self._traces = traces
        self._rank_lease_s = rank_lease_s
        self._there_since: dict[int, float] = {}
        self.pace = Pace(0, time.monotonic())
        self.leases = Leases((), lease_s=rank_lease_s, now=time.monotonic())
        self.recent = Recent(())
        if run.incarnation:
            self.opened()

    def opened(self) -> None:
        """The run was opened, here or before the server began: its trainer is about to want the cursor's selection."""
        now = time.monotonic()
        self._there_since, self.receive_seconds, self.pushed = {}, {}, None
        self.pace = Pace(max(self.run.completed.values()), now, self.pace.step_seconds)
        self.leases = Leases(self.run.completed, lease_s=self._rank_lease_s, now=now)
        self.recent = Recent(self.run.completed)

    def selected(self, message: pb.SelectionMessage, counted: Counted, *, journal_seconds: float) -> None:
        """The selection of a step is durable, and there for the ranks."""
        self.tally.selected(message, counted, journal_seconds=journal_seconds)
        self.trace_selection(message, journal_seconds=journal_seconds)
        self._there_since[message.step] = time.monotonic()
        is_first = message.step == self.run.info.timing.steps_using(message.weights_version).start
        receive_seconds = self.receive_seconds.pop(message.weights_version, 0.0) if is_first else 0.0
        self.outgoing.add(message, journal_seconds=journal_seconds, receive_seconds=receive_seconds)
        times = pb.PhaseTimes()
        times.CopyFrom(message.times)
        times.journal_seconds, times.receive_seconds = journal_seconds, receive_seconds
        self.recent.selected(message.step, message.weights_version, times)

    def trace_selection(self, message: pb.SelectionMessage, *, journal_seconds: float) -> None:
        """Tell its step's trace how a selection was made, where anybody listens."""
        if self._traces:
            spans = selection_spans(message.times, journal_seconds=journal_seconds)
            self._traces.record(self.run.info.name, message.step, spans)

    def stored_weights(self, version: int, num_bytes: int, seconds: float) -> None:
        """Weights are durable, which belongs to the step that made them."""
        self.tally.pushed(num_bytes, seconds)
        if self._traces and version:
            now = time.time_ns()
            span = Span("store weights", now - int(seconds * 1e9), now, {"version": version, "bytes": num_bytes})
            self._traces.record(self.run.info.name, version - 1, [span])

    @contextmanager
    def sending(self, step: int, rank: int, num_bytes: int) -> Iterator[None]:
        """While a selection is given to a rank's stream, which may have to wait for room."""
        self.tally.was_sent(num_bytes)
        start_ns = time.time_ns()
        yield
        if self._traces:
            span = Span("send", start_ns, time.time_ns(), {"rank": rank, "bytes": num_bytes})
            self._traces.record(self.run.info.name, step, [span])

    # ---- ranks

    @contextmanager
    def stream(self, rank: int) -> Iterator[None]:
        """While a stream to a rank is open, the rank is there.

        Raises:
            WireError: no such rank.
        """
        leases = self.leases  # of this incarnation; the stream may outlive it
        self.run.require_rank(rank)
        if leases.stream_opened(rank):
            self._log_return(rank)
        try:
            yield
        finally:
            leases.stream_ended(rank, time.monotonic())

    def report(self, rank: int, completed: int) -> None:
        """Note how many steps a rank has completed.

        Raises:
            WireError: no such rank, or more steps than the run has.
        """
        self.run.report_progress(rank, completed)
        now = time.monotonic()
        if self.leases.heard(rank, now):
            self._log_return(rank)
        self.recent.completed(rank, completed, gone=self.leases.gone)
        self.pace = self.pace.after(completed, now=now, there_since=self._trains_since)
        self._there_since = {step: at for step, at in self._there_since.items() if step >= self.pace.completed}

    def expire_leases(self) -> bool:
        """Stop waiting for ranks that have been silent for too long; whether there are new ones."""
        if self.run.closed:
            return False
        gone = self.leases.expire(time.monotonic())
        if gone:
            logger.warning(
                "run %s: step %d: %s silent for %.0f s: %s", self.run.info.name, self.run.next_step,
                ranks_in_words(gone), self._rank_lease_s,
                "others no longer wait for them; they get every selection when they are back" if self.leases.gone
                else "no rank is here, so nothing is worked ahead",
            )  # fmt: skip
        return bool(gone)

    def _log_return(self, rank: int) -> None:
        logger.info(
            "run %s: step %d: rank %d is back, with %d steps completed",
            self.run.info.name, self.run.next_step, rank, self.run.completed[rank],
        )  # fmt: skip

    # ---- what is next

    def selectable_step(self) -> int | None:
        """The step to select now; None where there is none."""
        return self.run.selectable_step(gone=self.leases.gone)

    def waits_for(self) -> str:
        """What keeps the next selection from being computed, in words; empty where nothing does."""
        return self.run.waits_for(gone=self.leases.gone)

    def enter(self, state: str) -> None:
        """Note what the run is at, one of the metrics' states."""
        self.tally.clock.enter(state, time.monotonic())

    def enter_what_it_waits_for(self) -> None:
        """Note what keeps it from being selected for; other runs, where nothing else does."""
        waits = self.run.waits(gone=self.leases.gone)
        self.enter(waits.cause if waits else "queued")

    @property
    def deadline(self) -> float:
        """When the trainer will want the next selection, or has wanted it since, on the clock of `time.monotonic`."""
        return self.pace.deadline(self.run.next_step, there_since=self._trains_since)

    @property
    def _trains_since(self) -> float:
        """When the selection of the first step that isn't completed was there."""
        return self._there_since.get(self.pace.completed, 0.0)
