"""One rank's stream of selections: asked for again whenever it breaks, each step once and in order.

A broken stream never resumes by itself, so it is asked for again from the first step that is missing here; the server
keeps every selection. Keep-alive pings end a stream whose server has died or can't be reached within seconds.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import grpc

from shared.errors import SubbatchError, UnavailableError, WireError, from_rpc_error, is_retryable
from shared.pb.v1 import selector_pb2 as pb
from train_client.assembling import Assembly, DamagedError, WantedRows
from train_client.calls import Calls
from train_client.received import Received
from train_client.waiting import Liveness, Wait

Look = Literal["here", "away", "not yet"]

logger = logging.getLogger(__name__)

# What has come and wasn't taken yet; the server is then held up by gRPC's flow control.
_MAX_QUEUED, _MAX_QUEUED_BYTES = 64, 64 << 20
_LOOK_EVERY_S = 0.5
# Even a stream has a deadline; it is then asked for again.
_STREAM_S = 3600.0


class SelectionStream:
    """Receives in the background. `take` and `look` may be called from different threads."""

    def __init__(
        self,
        calls: Calls,
        liveness: Liveness,
        *,
        run: str,
        rank: int,
        on_broken: Callable[[], None],
        wanted: WantedRows | None,
    ) -> None:
        """Prepare; `start` subscribes.

        Args:
            calls: To the server.
            liveness: Of the server.
            run: The run's name.
            rank: This rank.
            on_broken: Called when a stream has broken, before it is asked for again.
            wanted: Rows that are to come with each selection.
        """
        self._payload = pb.PAYLOAD_RECORDS if wanted else pb.PAYLOAD_INDICES
        self._assembly = Assembly(run=run, wanted=wanted)
        self._calls, self._liveness = calls, liveness
        self._run, self._rank, self._on_broken = run, rank, on_broken
        self._changed = threading.Condition()
        self._arrived: deque[Received] = deque()
        self._error: SubbatchError | None = None
        self._first_wanted = self._next = self._num_steps = 0
        self._incarnation = 0
        self._stream: Any = None
        self._thread: threading.Thread | None = None

    def start(self, incarnation: int, *, from_step: int, num_steps: int) -> None:
        """Begin to receive."""
        self._incarnation, self._num_steps = incarnation, num_steps
        self._first_wanted = self._next = from_step
        self._thread = threading.Thread(target=self._receive, name="subbatch-receive", daemon=True)
        self._thread.start()

    def take(self, step: int, *, is_due: Callable[[], bool]) -> Received | None:
        """The selection of a step, None where it is skipped; steps are asked for in order. Waits, and says what for.

        Args:
            step: Which step.
            is_due: Whether anybody needs it yet; until then it is waited for in silence and without end.

        Raises:
            UnavailableError: none came in time, or the client was closed.
            SubbatchError: the server refused the stream, or selecting failed.
        """
        wait: Wait | None = None
        while True:
            with self._changed:
                if not self._is_settled(step):
                    self._changed.wait(_LOOK_EVERY_S)
                if self._is_settled(step):
                    return self._take(step)
            if not is_due():
                wait = None
                continue
            wait = wait or self.wait_for(step)
            wait.is_away()

    def look(self, step: int, wait: Wait) -> Look:
        """Wait a moment for a step's selection and say how it stands.

        Raises:
            UnavailableError: the server answers, but hasn't selected the step in time.
            SubbatchError: none will come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_settled(step), 0.0 if wait.was_away else _LOOK_EVERY_S)
            if self._error and step >= max(self._next, self._first_wanted):
                raise self._error
            if self._is_settled(step):
                return "here"
        return "away" if wait.is_away() else "not yet"

    def wait_for(self, step: int) -> Wait:
        """A wait for a step's selection, from now on."""
        return Wait(self._liveness, self._calls, run=self._run, step=step, what=f"selection for step {step}")

    def skip_to(self, step: int) -> None:
        """Nobody wants the selections before a step any more, whether or not they have come."""
        with self._changed:
            self._first_wanted = max(self._first_wanted, step)
            while self._arrived and self._arrived[0].selection.step < self._first_wanted:
                self._arrived.popleft()
            self._changed.notify_all()

    def fail(self, error: SubbatchError) -> None:
        """Let whoever waits for a selection that hasn't come hear of an error instead."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    @property
    def next_to_arrive(self) -> int:
        """The first step whose selection hasn't come."""
        return max(self._next, self._first_wanted)

    def close(self) -> None:
        """End the thread and every wait; the channel is closed already, or is about to be."""
        if self._stream is not None:
            self._stream.cancel()
        with self._changed:
            self._changed.notify_all()

    def join(self) -> None:
        """Return when the thread has ended, after `close` and the channel's end."""
        if self._thread:
            self._thread.join()

    def _is_settled(self, step: int) -> bool:
        return bool(step < self._first_wanted or step < self._next or self._error or self._calls.stopping.is_set())

    def _has_room(self) -> bool:
        num_bytes = sum(received.num_bytes for received in self._arrived)
        return not self._arrived or (len(self._arrived) < _MAX_QUEUED and num_bytes < _MAX_QUEUED_BYTES)

    def _take(self, step: int) -> Received | None:
        if step < self._first_wanted:
            return None
        if self._arrived:
            arrived = self._arrived.popleft()
            self._changed.notify_all()
            if arrived.selection.step != step:
                raise WireError(
                    f"run {self._run!r}: got the selection of step {arrived.selection.step} for step {step}"
                )
            return arrived
        raise self._error or UnavailableError(f"run {self._run!r}: the connection to the server was closed")

    # ---- in the background

    def _receive(self) -> None:
        """Keep a stream open until the last step, or an error that trying again won't mend."""
        while self._next < self._num_steps and not self._calls.stopping.is_set():
            try:
                self._receive_once()
            except grpc.RpcError as error:
                if self._calls.stopping.is_set():
                    return
                if not is_retryable(error):
                    self.fail(from_rpc_error(error, doing=f"streaming selections of run {self._run!r}"))
                    return
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._begin_again()
                else:
                    self._begin_again(f"no connection to {self._calls.config.selector}: {error.details()}")
            except DamagedError as error:
                self._begin_again(str(error))
            except Exception as error:  # this thread's end must not look like a server that is silent
                if not self._calls.stopping.is_set():
                    self.fail(error if isinstance(error, SubbatchError) else WireError(f"run {self._run!r}: {error!r}"))
                return

    def _begin_again(self, why: str = "") -> None:
        """Let go of the stream and pause; the steps that are missing are asked for anew."""
        if why:
            logger.warning("run %s: step %d: %s; subscribing again", self._run, self._next, why)
        if self._stream is not None:
            self._stream.cancel()
        self._calls.traffic.retried("stream")
        self._on_broken()
        self._calls.stopping.wait(random.uniform(0.05, 0.3))

    def _receive_once(self) -> None:
        with self._changed:
            self._next = max(self._next, self._first_wanted)
        request = pb.StreamSelectionsRequest(
            run=self._run,
            incarnation=self._incarnation,
            rank=self._rank,
            from_step=self._next,
            payload=self._payload,
        )
        calls = self._calls
        self._assembly.begin_again()
        self._stream = calls.stub.StreamSelections(
            request, metadata=calls.metadata, timeout=_STREAM_S, wait_for_ready=True
        )
        for message in self._stream:
            received = self._assembly.add(message, step=self._next)
            self._liveness.answered()
            if received is None:
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._has_room() or calls.stopping.is_set())
                if calls.stopping.is_set():
                    return
                if received.selection.step >= self._first_wanted:
                    self._arrived.append(received)
                self._next += 1
                self._changed.notify_all()
