"""A run with what serving it takes: its lock, its listeners, its trainer's pace, its engine once it is needed."""

from __future__ import annotations

import asyncio
import time

from selector_server.deadline import Pace
from selector_server.engine import SelectionEngine
from selector_server.run import Run


class HostedRun:
    """One run of a server; used on the server's event loop alone."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lock = asyncio.Lock()
        self.changed = asyncio.Condition()
        self.revision = 0
        self.engine: SelectionEngine | None = None
        self.journal_seconds: dict[int, float] = {}
        self.receive_seconds: dict[int, float] = {}
        self._there_since: dict[int, float] = {}
        self.pace = Pace(0, time.monotonic())
        if run.incarnation:
            self.opened()

    def opened(self) -> None:
        """The run was opened, here or before the server began: its trainer is about to want the cursor's selection."""
        self._there_since = {}
        self.pace = Pace(max(self.run.completed.values()), time.monotonic(), self.pace.step_seconds)

    def selected(self, step: int) -> None:
        """The selection of a step is there for the ranks."""
        self._there_since[step] = time.monotonic()

    def report(self, rank: int, completed: int) -> None:
        """Note how many steps a rank has completed.

        Raises:
            WireError: no such rank, or more steps than the run has.
        """
        self.run.report_progress(rank, completed)
        self.pace = self.pace.after(completed, now=time.monotonic(), there_since=self._trains_since)
        self._there_since = {step: at for step, at in self._there_since.items() if step >= self.pace.completed}

    @property
    def deadline(self) -> float:
        """When the trainer will want the next selection, or has wanted it since, on the clock of `time.monotonic`."""
        return self.pace.deadline(self.run.next_step, there_since=self._trains_since)

    @property
    def _trains_since(self) -> float:
        """When the selection of the first step that isn't completed was there."""
        return self._there_since.get(self.pace.completed, 0.0)
