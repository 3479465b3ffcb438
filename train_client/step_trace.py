"""One rank's part in the trace of each step: what its `StepReport` says, told once the step is over."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from shared.spans import Span, Traces, selection_spans

if TYPE_CHECKING:
    from train_client.plugin import StepReport


class StepTrace:
    """Tells the traces of one rank's steps."""

    def __init__(self, traces: Traces, *, run: str, rank: int, selects: bool) -> None:
        """Prepare.

        Args:
            traces: Where spans go.
            run: The run's name.
            rank: This rank, of which the first one tells the whole step.
            selects: Whether nobody else tells how selections were found.
        """
        self._traces, self._run, self._rank, self._selects = traces, run, rank, selects

    def step(self, report: StepReport) -> None:
        """A step was attempted, just now."""
        now = time.time_ns()
        selection, times = report.selection, report.selector
        spans, end = [], now
        for name, seconds in (
            ("snapshot", report.push_seconds),
            ("optimizer", report.optimizer_seconds),
            ("train", report.train_seconds),
        ):
            begin = end - int(seconds * 1e9)
            spans.append(self._span(name, begin, end))
            end = begin
        if report.wait_seconds:
            waited = report.wait_started_ns + int(report.wait_seconds * 1e9)
            spans.append(self._span("wait", report.wait_started_ns, waited))
        found = selection_spans(times, journal_seconds=times.journal_seconds) if times.started_unix_ns else []
        if self._selects:
            spans += found
        elif found:
            durable = min(found[-1].end_ns, report.arrived_unix_ns)
            spans.append(self._span("receive", durable, report.arrived_unix_ns, bytes=report.wire_bytes))
        whole = None
        if self._rank == 0:
            began = min([report.wait_started_ns, *(span.start_ns for span in found)])
            whole = self._span(
                "step", began, now, weights_version=selection.weights_version, fallback=selection.fallback
            )
        self._traces.record(self._run, selection.step, spans, whole=whole)

    def pushed(self, version: int, num_bytes: int, start_ns: int, end_ns: int) -> None:
        """Weights are durable on the server: the end of the step that made them."""
        if version:
            span = self._span("push", start_ns, end_ns, bytes=num_bytes, version=version)
            self._traces.record(self._run, version - 1, [span])

    def _span(self, name: str, start_ns: int, end_ns: int, **attributes: int | bool) -> Span:
        return Span(name, start_ns, end_ns, {"rank": self._rank, **attributes})


def instance(rank: int) -> str:
    """What tells this rank's process from others of its job."""
    return f"rank{rank}-{os.getpid()}"
