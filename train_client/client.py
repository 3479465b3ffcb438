"""One rank's connection to its selector server: deadlines, retries, re-subscription. Knows nothing of training.

A broken stream never resumes by itself, so it is asked for again from the first step that is missing; the server keeps
every selection, so each step arrives exactly once and in order whatever breaks in between.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from shared.config import ClientConfig
from shared.convert import run_to_pb, times_from_pb
from shared.errors import RETRYABLE, SubbatchError, UnavailableError, WireError, from_rpc_error
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.records import PhaseTimes, RunInfo, Selection
from shared.transport import call_metadata, open_channel
from shared.weights import content_hash
from shared.wire import decode_selection
from train_client.upload import PUSH_METHOD, push_messages

logger = logging.getLogger(__name__)
T = TypeVar("T")

_LOG_EVERY_S = 10.0
_MAX_QUEUED = 64
_SLOWEST_PUSH_BYTES_PER_S = 4 << 20


@dataclass(frozen=True)
class Received:
    """A selection as it arrived, with the server's phase times, its size on the wire, and when that was."""

    selection: Selection
    times: PhaseTimes
    num_bytes: int
    arrived_unix_ns: int


class SelectorClient:
    """Calls of one rank for one run. `selection`, `report` and `push` may be called from different threads."""

    def __init__(self, config: ClientConfig, *, run: str, rank: int) -> None:
        """Prepare a channel; nothing is sent yet.

        Raises:
            ConfigError: a token or TLS file that can't be read.
        """
        self._config, self._run, self._rank = config, run, rank
        self._metadata = call_metadata(config)
        self._channel = open_channel(config.selector, config.tls)
        self._stub = selector_pb2_grpc.SelectorServiceStub(self._channel)
        self._push_weights = self._channel.stream_unary(
            PUSH_METHOD, response_deserializer=pb.PushWeightsReply.FromString
        )
        self._incarnation = 0
        self._arrived: queue.Queue[Received | SubbatchError] = queue.Queue(_MAX_QUEUED)
        self._stopping = threading.Event()
        self._trouble = ""
        self._stream: Any = None
        self._threads: list[threading.Thread] = []
        self._progress = threading.Condition()
        self._completed = self._reported = -1
        self._subscription = 0
        self._report_error: SubbatchError | None = None

    # ---- opening and closing

    def open_run(
        self, info: RunInfo, *, cursor: int, restart: bool, checkpoint_incarnation: int = 0
    ) -> tuple[int, list[int]]:
        """Open the run as its only writer: its incarnation, and the versions of the weights to push.

        Raises:
            SubbatchError: what the server refuses, or UnavailableError where it can't be reached in time.
        """
        request = pb.OpenRunRequest(
            run=run_to_pb(info),
            cursor=cursor,
            restart=restart,
            open_id=uuid.uuid4().hex,
            checkpoint_incarnation=checkpoint_incarnation,
        )
        reply = self._call(
            f"opening run {self._run!r} at step {cursor} on {self._config.selector}",
            lambda timeout: self._stub.OpenRun(request, timeout=timeout, metadata=self._metadata),
            patience_s=self._config.connect_timeout_s,
            # Opening builds the run's model on the server, which takes longer than a plain call.
            timeout_s=self._config.wait_timeout_s,
            remedy="start the server, or correct client.selector",
        )
        self._incarnation = reply.incarnation
        return reply.incarnation, list(reply.missing_versions)

    def attach(self, incarnation: int, *, from_step: int, num_steps: int) -> None:
        """Begin to receive selections and to report progress, both in the background."""
        self._incarnation = incarnation
        self._completed = from_step
        for target, arguments in ((self._receive, (from_step, num_steps)), (self._report, ())):
            thread = threading.Thread(target=target, args=arguments, name=f"subbatch-{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close_run(self) -> None:
        """Tell the server that training is done.

        Raises:
            SubbatchError: refused, or the server can't be reached.
        """
        request = pb.CloseRunRequest(run=self._run, incarnation=self._incarnation)
        self._call(
            f"closing run {self._run!r}",
            lambda timeout: self._stub.CloseRun(request, timeout=timeout, metadata=self._metadata),
        )

    def close(self) -> None:
        """Stop the background threads and the channel."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.cancel()
        with self._progress:
            self._progress.notify_all()
        with contextlib.suppress(queue.Full):  # then nobody is waiting
            self._arrived.put_nowait(UnavailableError(f"run {self._run!r}: the connection to the server was closed"))
        self._channel.close()
        for thread in self._threads:
            thread.join()

    # ---- selections

    def selection(self, step: int, *, is_due: Callable[[], bool] = lambda: True) -> Received:
        """The selection of a step; steps must be asked for in order. Waits, and says what for.

        Args:
            step: Which step.
            is_due: Whether anybody needs it yet; until then it is waited for in silence and without end.

        Raises:
            UnavailableError: none came within client.wait_timeout_s, or the client was closed.
            SubbatchError: the server refused the stream, or selecting failed.
        """
        began = time.monotonic()
        next_log = began + _LOG_EVERY_S
        while True:
            try:
                arrived = self._arrived.get(timeout=0.5)
            except queue.Empty:
                if not is_due():
                    began = time.monotonic()
                    next_log = began + _LOG_EVERY_S
                    continue
                waited = time.monotonic() - began
                if waited > self._config.wait_timeout_s:
                    raise UnavailableError(
                        f"run {self._run!r}: no selection for step {step} within {waited:.0f} s: {self._blame()}: "
                        "look at the server's log, then resume from the last checkpoint"
                    ) from None
                if time.monotonic() > next_log:
                    next_log += _LOG_EVERY_S
                    logger.warning(
                        "run %s: step %d: waiting for its selection since %.0f s: %s",
                        self._run, step, waited, self._blame(),
                    )  # fmt: skip
                continue
            if isinstance(arrived, SubbatchError):
                raise arrived
            if arrived.selection.step != step:
                raise WireError(
                    f"run {self._run!r}: got the selection of step {arrived.selection.step} for step {step}"
                )
            return arrived

    def _blame(self) -> str:
        """Who keeps this rank waiting, in words."""
        if self._trouble:
            return self._trouble
        try:
            stream = self._stub.WatchRun(pb.WatchRunRequest(run=self._run), timeout=2.0, metadata=self._metadata)
            status = next(iter(stream))
            stream.cancel()
        except (grpc.RpcError, StopIteration):
            return f"server {self._config.selector} doesn't answer"
        return f"the server waits for {status.waits_for}" if status.waits_for != "scoring" else "the server is scoring"

    def _receive(self, step: int, num_steps: int) -> None:
        """Keep a stream open and queue what arrives, until the last step or an error that trying again won't mend."""
        while step < num_steps and not self._stopping.is_set():
            request = pb.StreamSelectionsRequest(
                run=self._run, incarnation=self._incarnation, rank=self._rank, from_step=step
            )
            try:
                self._stream = self._stub.StreamSelections(request, metadata=self._metadata, wait_for_ready=True)
                for message in self._stream:
                    received = _decode(message, run=self._run, step=step)
                    self._trouble = ""
                    self._put(received)
                    step += 1
                    if self._stopping.is_set():
                        return
            except grpc.RpcError as error:
                if self._stopping.is_set():
                    return
                if error.code() not in RETRYABLE:
                    self._put(from_rpc_error(error, doing=f"streaming selections of run {self._run!r}"))
                    return
                self._trouble = f"no connection to {self._config.selector}: {error.details()}"
                logger.warning("run %s: step %d: %s; subscribing again", self._run, step, self._trouble)
                # A server that restarted has forgotten how far this rank is.
                with self._progress:
                    self._reported = -1
                    self._subscription += 1
                    self._progress.notify_all()
                self._stopping.wait(random.uniform(0.05, 0.3))
            except Exception as error:  # this thread's end must not look like a server that is silent
                trouble = error if isinstance(error, SubbatchError) else WireError(f"run {self._run!r}: {error!r}")
                self._put(trouble)
                return

    def _put(self, item: Received | SubbatchError) -> None:
        while not self._stopping.is_set():
            try:
                self._arrived.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    # ---- progress

    def report(self, completed: int) -> None:
        """Tell the server, in the background, how many steps this rank has completed.

        Raises:
            SubbatchError: an earlier report was refused.
        """
        with self._progress:
            if self._report_error:
                raise self._report_error
            self._completed = completed
            self._progress.notify_all()

    def _report(self) -> None:
        """Send the newest progress whenever the server doesn't have it."""
        while True:
            with self._progress:
                self._progress.wait_for(lambda: self._stopping.is_set() or self._reported < self._completed)
                if self._stopping.is_set():
                    return
                completed, subscription = self._completed, self._subscription
            request = pb.ReportProgressRequest(
                run=self._run, incarnation=self._incarnation, rank=self._rank, completed=completed
            )
            try:
                self._stub.ReportProgress(
                    request, timeout=self._config.call_timeout_s, metadata=self._metadata, wait_for_ready=True
                )
            except grpc.RpcError as error:
                if self._stopping.is_set():
                    return
                if error.code() in RETRYABLE:
                    self._stopping.wait(random.uniform(0.05, 0.3))
                    continue
                with self._progress:
                    self._report_error = from_rpc_error(error, doing=f"reporting progress of run {self._run!r}")
                return
            with self._progress:
                if subscription == self._subscription:  # else the server that heard it may be gone
                    self._reported = completed

    # ---- weights

    def push(self, version: int, payload: bytes | memoryview) -> None:
        """Upload one version of the weights; returns when it is durable on the server, until when it may not change.

        Raises:
            SubbatchError: refused, or the server stayed away.
        """
        header = pb.PushWeightsHeader(
            run=self._run,
            incarnation=self._incarnation,
            version=version,
            num_bytes=len(payload),
            sha256=content_hash(payload),
        )
        reply = self._call(
            f"run {self._run!r}: pushing weights version {version}",
            lambda timeout: self._push_weights(
                push_messages(header, payload), timeout=timeout, metadata=self._metadata
            ),
            patience_s=self._config.wait_timeout_s,
            timeout_s=self._config.call_timeout_s + len(payload) / _SLOWEST_PUSH_BYTES_PER_S,
        )
        if reply.durable_version != version:
            raise WireError(f"run {self._run!r}: pushed weights version {version}, got {reply.durable_version} back")

    def _call(
        self,
        doing: str,
        call: Callable[[float], T],
        *,
        patience_s: float | None = None,
        timeout_s: float | None = None,
        remedy: str = "look at the server's log, then resume from the last checkpoint",
    ) -> T:
        """Make a call that is safe to repeat, again and again while the server is away, for `patience_s` at most."""
        patience_s = self._config.call_timeout_s if patience_s is None else patience_s
        began = time.monotonic()
        next_log = began
        while True:
            try:
                return call(timeout_s or self._config.call_timeout_s)
            except grpc.RpcError as error:
                waited = time.monotonic() - began
                failure = from_rpc_error(error, doing=doing)
                if error.code() not in RETRYABLE:
                    raise failure from None
                if waited > patience_s:
                    raise UnavailableError(f"{failure}: gave up after {waited:.0f} s: {remedy}") from None
                if time.monotonic() >= next_log:
                    next_log = time.monotonic() + _LOG_EVERY_S
                    logger.warning("%s; trying again for %.0f s more", failure, patience_s - waited)
                if self._stopping.wait(random.uniform(0.1, 0.5)):
                    raise failure from None


def _decode(message: pb.SelectionMessage, *, run: str, step: int) -> Received:
    """The selection in a message, if it is the one that was asked for.

    Raises:
        WireError: malformed, of another run, or not the next step.
    """
    selection = decode_selection(message.arrow)
    if selection.run != run or selection.step != step or message.step != step:
        raise WireError(
            f"expected the selection of run {run!r}, step {step}, got run {selection.run!r}, step {selection.step}"
        )
    return Received(selection, times_from_pb(message.times), len(message.arrow), time.time_ns())
