"""All runs of a server, on one store: opened, pushed to, streamed from, closed; `scheduler.py` selects for them.

Everything here runs on the server's event loop except what is handed to helper threads (disk) or the scheduler's worker
(building engines). A run's journal is only written under that run's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from selector_server.agreement import require_same_fingerprints
from selector_server.changes import Signal
from selector_server.engine import SelectionEngine
from selector_server.hosted_run import HostedRun
from selector_server.journal import Journal
from selector_server.live.describe import add_detail, run_status
from selector_server.run import Run
from selector_server.run_engine import BuildEngine, Pushed
from selector_server.scheduler import Scheduler
from selector_server.sent_rows import RowSender
from selector_server.trained import trained_selections
from shared.dataset import Store
from shared.errors import (
    ConfigError,
    RunNotFoundError,
    SubbatchError,
    UnavailableError,
)
from shared.pb.v1 import selector_pb2 as pb
from shared.records import Fingerprints, RunInfo
from shared.source_labels import SourceLabels
from shared.spans import Traces
from shared.weights import decode_weights

logger = logging.getLogger(__name__)


T = TypeVar("T")


async def _to_the_end(section: Coroutine[Any, Any, T]) -> T:
    """Run a section to its end even if the call that began it is cancelled: its disk thread can't be."""
    return await asyncio.shield(asyncio.create_task(section))


class Host:
    """The runs of one server.

    Attributes:
        store: The rows that all of them draw from.
        rows: Sends these to ranks that don't hold them.
        folder: Holds a journal for each run.
        max_runs: Most runs that may be open at a time.
        scoring_processes: How many there are.
    """

    def __init__(
        self,
        store: Store,
        fingerprints: Fingerprints,
        folder: Path,
        *,
        build: BuildEngine,
        max_runs: int,
        rank_lease_s: float,
        scoring_processes: int = 1,
        open_journal: Callable[[Path], Journal] = Journal,
        traces: Traces | None = None,
    ) -> None:
        """Take up every run whose journal is in `folder`; a damaged one is logged, and refused when it is opened.

        Args:
            store: The rows that runs draw from.
            fingerprints: What trainers must agree with.
            folder: As the attribute.
            build: Makes the engine of a run; it and its engines are used in the worker thread alone.
            max_runs: As the attribute.
            rank_lease_s: How long a rank without a stream may be silent before others no longer wait for it.
            scoring_processes: As the attribute.
            open_journal: Opens the journal in a run's folder.
            traces: Where the traces of steps go, if anywhere.
        """
        self._sources = SourceLabels(store.source_names, store.source_rows)
        self.store, self._fingerprints, self.folder = store, fingerprints, folder
        self.max_runs, self._open_journal, self._traces = max_runs, open_journal, traces
        self.rows = RowSender(store)
        self._rank_lease_s, self.scoring_processes = rank_lease_s, scoring_processes
        self._runs: dict[str, HostedRun] = {}
        self._scheduler = Scheduler(self._runs, build=build)
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if (path / "journal.bin").is_file():
                self._resume(path)

    def _resume(self, path: Path) -> None:
        try:
            run = Run(self._open_journal(path))
        except SubbatchError as error:
            logger.error("run %s can't be resumed: %s", path.name, error)
            return
        if run.incarnation:
            self._runs[path.name] = HostedRun(run, rank_lease_s=self._rank_lease_s, traces=self._traces)
            self._refuse_foreign(run)
            logger.info("run %s resumed from its journal at step %d", path.name, run.next_step)

    def _refuse_foreign(self, run: Run) -> None:
        """Let a run rest that began with other data or another model than this server has."""
        try:
            self._require_same(run.info)
        except SubbatchError as error:
            run.failure = error
            logger.error("run %s can't go on here: %s", run.info.name, error)

    def _require_same(self, info: RunInfo) -> None:
        require_same_fingerprints(self._fingerprints, info.fingerprints, left="the server", right="the trainer")

    @property
    def fingerprints(self) -> Fingerprints:
        """What trainers must agree with."""
        return self._fingerprints

    def find(self, name: str) -> HostedRun | None:
        """A run by name; None where there is no such run."""
        return self._runs.get(name)

    def get(self, name: str) -> HostedRun:
        """A run by name.

        Raises:
            RunNotFoundError: no such run.
        """
        if name not in self._runs:
            known = ", ".join(sorted(self._runs)) or "none"
            raise RunNotFoundError(f"run {name!r} is not known here (runs: {known}): open it first")
        return self._runs[name]

    def status(self, hosted: HostedRun, *, detail: bool) -> pb.RunStatus:
        """How a run stands; the caller holds its lock.

        Args:
            hosted: The run.
            detail: Whether people look at it.
        """
        status = run_status(hosted, scoring_processes=self.scoring_processes)
        if detail:
            others = any(other is not hosted and not other.run.closed for other in self._runs.values())
            add_detail(status, hosted, sources=self._sources, is_shared=others)
        return status

    @property
    def names(self) -> list[str]:
        """All runs, by name."""
        return sorted(self._runs)

    @property
    def open_runs(self) -> list[HostedRun]:
        """Those that are open, by name."""
        runs = (hosted for _, hosted in sorted(self._runs.items()))
        return [hosted for hosted in runs if hosted.run.incarnation and not hosted.run.closed]

    @property
    def runs_to_show(self) -> list[HostedRun]:
        """Those that are open, and those that this server has selected for, by name."""
        return [
            hosted
            for _, hosted in sorted(self._runs.items())
            if hosted.run.incarnation and (not hosted.run.closed or hosted.recent.steps())
        ]

    async def open(
        self,
        info: RunInfo,
        *,
        cursor: int,
        restart: bool,
        open_id: str,
        checkpoint_incarnation: int,
        trained: Sequence[pb.TrainedStep] = (),
    ) -> tuple[int, list[int]]:
        """Open a run: its incarnation, and the versions that the trainer has to push.

        Raises:
            SubbatchError: everything that a trainer and a server can disagree about, before anything is changed.
        """
        self._require_same(info)
        num_rows = len(self.store)
        if info.selection.large_batch_size > num_rows:
            raise ConfigError(
                f"selection.large_batch_size {info.selection.large_batch_size} is larger than the data, {num_rows} "
                "rows: lower it, or prepare a larger store"
            )
        known = await asyncio.to_thread(trained_selections, info, self.store, trained)
        self._require_room(info.name)  # before an engine is built for nothing
        engine = await self._scheduler.build(info)
        self._require_room(info.name)
        hosted = self._runs.get(info.name) or self._add(info.name)

        async def locked() -> list[int]:
            async with hosted.lock:
                return await self._open_locked(
                    hosted, engine, info, cursor, restart, open_id, checkpoint_incarnation, known
                )

        missing = await _to_the_end(locked())
        logger.info(
            "run %s opened at step %d, incarnation %d, %d ranks, missing weights %s",
            info.name, cursor, hosted.run.incarnation, info.world_size, missing,
        )  # fmt: skip
        self.notify(hosted)
        return hosted.run.incarnation, missing

    async def _open_locked(
        self,
        hosted: HostedRun,
        engine: SelectionEngine,
        info: RunInfo,
        cursor: int,
        restart: bool,
        open_id: str,
        checkpoint_incarnation: int,
        trained: Sequence[pb.SelectionMessage],
    ) -> list[int]:
        try:
            missing = await asyncio.to_thread(
                hosted.run.open,
                info,
                cursor=cursor,
                restart=restart,
                open_id=open_id,
                checkpoint_incarnation=checkpoint_incarnation,
                trained=trained,
            )
        except SubbatchError:
            if not hosted.run.incarnation:  # a first opening that was refused leaves no run behind
                self._runs.pop(info.name, None)
            raise
        self._runs[info.name] = hosted
        hosted.engine = engine
        hosted.opened()
        return missing

    def _require_room(self, name: str) -> None:
        """Refuse to have one more run open than `max_runs`; a run that is open already takes no more room.

        Raises:
            ConfigError: the server is full.
        """
        others = sorted(n for n, hosted in self._runs.items() if not hosted.run.closed and n != name)
        if len(others) >= self.max_runs:
            raise ConfigError(
                f"run {name!r} finds no room: server.max_runs is {self.max_runs}, and open are {', '.join(others)}: "
                "let one of them end, raise server.max_runs, or use another server"
            )

    def _add(self, name: str) -> HostedRun:
        run = Run(self._open_journal(self.folder / name))
        hosted = HostedRun(run, rank_lease_s=self._rank_lease_s, traces=self._traces)
        self._runs[name] = hosted
        return hosted

    def notify(self, hosted: HostedRun) -> None:
        """Tell the scheduler, the run's streams and its watchers that something changed."""
        hosted.published.fire()
        self.notify_watchers(hosted)

    def notify_watchers(self, hosted: HostedRun) -> None:
        """Tell the scheduler and the run's watchers of a change that gives the streams nothing to do."""
        self._scheduler.wake()
        hosted.changed.fire()

    async def watch(self, signal: Signal) -> AsyncIterator[None]:
        """Yield now and after a run's changes.

        Args:
            signal: A hosted run's.

        Raises:
            UnavailableError: the server is stopping; the listener may come back to the next one.
        """
        while True:
            if self._scheduler.stopping:
                raise UnavailableError("the server is stopping")
            seen = signal.count
            yield
            await signal.past(seen)

    @contextlib.contextmanager
    def stream(self, hosted: HostedRun, rank: int) -> Iterator[None]:
        """While a stream to a rank is open, the rank is there; its end begins a lease.

        Raises:
            WireError: no such rank.
        """
        try:
            with hosted.stream(rank):
                self.notify_watchers(hosted)
                yield
        finally:
            self.notify_watchers(hosted)

    def report(self, name: str, incarnation: int, *, rank: int, completed: int) -> None:
        """Note how many steps a rank has completed.

        Raises:
            StaleIncarnationError, WireError: refused; nothing changed.
        """
        hosted = self.get(name)
        hosted.run.require_incarnation(incarnation)
        hosted.report(rank, completed)
        self.notify_watchers(hosted)

    async def trained(self, name: str, incarnation: int, steps: Sequence[pb.TrainedStep]) -> None:
        """Make durable that steps were trained while nobody could reach this server.

        Raises:
            StaleIncarnationError, WireError, DataError, CursorError, JournalError: refused; what came before stays.
        """
        hosted = self.get(name)
        run = hosted.run

        async def locked() -> None:
            async with hosted.lock:
                run.require_incarnation(incarnation)
                selections = await asyncio.to_thread(trained_selections, run.info, self.store, steps)
                await asyncio.to_thread(run.add_trained, selections)

        await _to_the_end(locked())
        if steps:
            logger.warning(
                "run %s trained %d steps from step %d on while this server was away; it goes on at step %d",
                name, len(steps), steps[0].step, run.next_step,
            )  # fmt: skip
        self.notify(hosted)

    async def push(
        self,
        name: str,
        incarnation: int,
        version: int,
        payload: bytes | bytearray,
        sha256: str,
        *,
        began: float,
        next_is_delta: bool = False,
    ) -> None:
        """Check weights against the tensors they claim to be, make them durable, and keep them for the next selection.

        Args:
            name: Of the run.
            incarnation: Of the job that pushes.
            version: Of the weights.
            payload: Their safetensors, which nobody changes any more.
            sha256: Of the payload.
            began: When their first byte arrived, on the clock of `time.perf_counter`.
            next_is_delta: Whether the next push will be rebuilt from them.

        Raises:
            StaleIncarnationError, WeightsError, JournalError: refused; nothing changed.
        """
        hosted = self.get(name)

        async def locked() -> None:
            async with hosted.lock:
                hosted.run.require_incarnation(incarnation)
                if not hosted.run.is_known(version, sha256):
                    tensors = await asyncio.to_thread(decode_weights, payload, hosted.run.info.trainable)
                    add = partial(hosted.run.add_weights, next_is_delta=next_is_delta)
                    await asyncio.to_thread(add, version, sha256, payload)
                    hosted.pushed = Pushed(version, sha256, tensors)

        await _to_the_end(locked())
        logger.info("run %s has weights version %d, %d bytes", name, version, len(payload))
        hosted.receive_seconds[version] = time.perf_counter() - began
        hosted.stored_weights(version, len(payload), hosted.receive_seconds[version])
        self.notify_watchers(hosted)

    async def close_run(self, name: str, incarnation: int) -> None:
        """End a run and free its engine."""
        hosted = self.get(name)

        async def locked() -> None:
            async with hosted.lock:
                hosted.run.require_incarnation(incarnation)
                await asyncio.to_thread(hosted.run.close)
                hosted.engine = hosted.pushed = None

        await _to_the_end(locked())
        logger.info("run %s closed at step %d", name, hosted.run.next_step)
        self.notify(hosted)

    async def schedule(self) -> None:
        """Select for the runs that can go on, until `stop`."""
        await self._scheduler.schedule()

    async def stop(self) -> None:
        """End `schedule` after the selection at hand, and every stream."""
        self._scheduler.stop()
        for hosted in self._runs.values():
            self.notify(hosted)

    def close(self) -> None:
        """Let go of the worker and the journals, when nothing is served any more."""
        self._scheduler.close()
        for hosted in self._runs.values():
            hosted.run.journal.close()
