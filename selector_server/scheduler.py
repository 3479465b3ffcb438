"""Who goes next: one worker thread that builds engines and selects, for one run at a time.

First goes the run whose trainer would be the first to wait. Everything here runs on the server's event loop except what
is handed to the worker (loading weights, scoring, picking) or to a disk thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from selector_server.engine import SelectionEngine
from selector_server.hosted_run import HostedRun
from selector_server.run_engine import BuildEngine, select_step
from shared.errors import SelectionError, StorageFullError, SubbatchError
from shared.records import RunInfo

logger = logging.getLogger(__name__)

# How long a run whose disk is full rests before it tries again.
_FULL_DISK_REST_S = 2.0


class Scheduler:
    """Selects for the runs of a host."""

    def __init__(self, runs: Mapping[str, HostedRun], *, build: BuildEngine) -> None:
        """Start the worker thread; nothing is selected before `schedule`.

        Args:
            runs: The host's, by name, as they are from now on.
            build: Makes the engine of a run; it and its engines are used in the worker thread alone.
        """
        self._runs, self._build = runs, build
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="selector")
        self._wake = asyncio.Event()
        self.stopping = False

    def wake(self) -> None:
        """Something changed, in any run."""
        self._wake.set()

    async def build(self, info: RunInfo) -> SelectionEngine:
        """Make the engine of a run.

        Raises:
            SubbatchError: the run can't be served.
        """
        engine: SelectionEngine = await self._in_worker(self._build, info)
        return engine

    async def schedule(self) -> None:
        """Select for the runs that can go on, first for whose trainer would be the first to wait, until `stop`."""
        while not self.stopping:
            self._wake.clear()
            # A run whose lock is taken is changing, and notifies when it is done.
            runs = [hosted for _, hosted in sorted(self._runs.items()) if not hosted.lock.locked()]
            for hosted in runs:
                if hosted.expire_leases():
                    hosted.changed.fire()
                hosted.enter_what_it_waits_for()
            ready = [hosted for hosted in runs if hosted.selectable_step() is not None]
            if not ready:
                await self._woken(runs)
                continue
            await self._select_next(min(ready, key=lambda hosted: hosted.deadline))

    async def _woken(self, runs: Sequence[HostedRun]) -> None:
        """Wait for a change, or for the next lease that runs out."""
        expiries = [at for hosted in runs if not hosted.run.closed and (at := hosted.leases.next_expiry) is not None]
        seconds = max(0.0, min(expiries) - time.monotonic()) if expiries else None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout=seconds)

    async def _select_next(self, hosted: HostedRun) -> None:
        """Compute and publish one selection; a run that was opened again meanwhile gets nothing from this."""
        run = hosted.run
        incarnation, step = run.incarnation, run.next_step
        try:
            select = partial(select_step, build=self._build, pushed=hosted.pushed)
            hosted.enter("selecting")
            found = await self._in_worker(select, run, hosted.engine, step)
            async with hosted.lock:
                if run.incarnation != incarnation or run.closed or run.next_step != step:
                    return
                hosted.engine = found.engine
                if hosted.pushed and hosted.pushed.version == found.engine.weights_version:
                    hosted.pushed = None
                clock = time.perf_counter()
                await asyncio.to_thread(run.add_selection, found.message, found.scores)
                hosted.selected(found.message, found.counted, journal_seconds=time.perf_counter() - clock)
                hosted.published.fire()
                await asyncio.to_thread(run.drop_unneeded_weights)
        except StorageFullError as error:
            self._hold(hosted, incarnation, error)
        except SubbatchError as error:
            if run.next_step == step:  # else it was trained without, which takes its weights away
                self._fail(hosted, incarnation, error)
        except Exception as error:  # a bug or a device error: the trainers must hear of it, and other runs go on
            logger.exception("run %s: step %d failed", run.info.name, step)
            self._fail(hosted, incarnation, SelectionError(f"run {run.info.name!r}, step {step}: {error!r}"))
        hosted.enter_what_it_waits_for()
        hosted.published.fire()
        hosted.changed.fire()

    def _fail(self, hosted: HostedRun, incarnation: int, error: SubbatchError) -> None:
        if hosted.run.incarnation == incarnation:
            hosted.run.failure = error
            hosted.engine = None
            logger.error("run %s stops: %s", hosted.run.info.name, error)

    def _hold(self, hosted: HostedRun, incarnation: int, error: StorageFullError) -> None:
        """Let a run rest whose disk is full; then its step is selected again, which gives the same."""
        if hosted.run.incarnation == incarnation:
            hosted.run.held = error
            logger.error("run %s waits: %s", hosted.run.info.name, error)
            asyncio.get_running_loop().call_later(_FULL_DISK_REST_S, self._release, hosted)

    def _release(self, hosted: HostedRun) -> None:
        hosted.run.held = None
        self._wake.set()

    async def _in_worker(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)

    def stop(self) -> None:
        """End `schedule` after the selection at hand."""
        self.stopping = True
        self._wake.set()

    def close(self) -> None:
        """Let go of the worker, when nothing is served any more."""
        self._worker.shutdown()
