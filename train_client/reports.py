"""What a rank tells its server in the background: how many steps it has completed, and which it trained without one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping

import grpc

from shared.errors import SubbatchError, from_rpc_error, is_retryable
from shared.pb.v1 import selector_pb2 as pb
from train_client.calls import Calls
from train_client.waiting import Liveness

# The server makes each step durable by itself, and answers within a call's deadline.
_STEPS_AT_ONCE = 64


class Reports:
    """Sends the newest progress whenever the server doesn't have it."""

    def __init__(
        self, calls: Calls, liveness: Liveness, *, run: str, rank: int, on_refused: Callable[[SubbatchError], None]
    ) -> None:
        """Prepare; `start` begins.

        Args:
            calls: To the server.
            liveness: Of the server.
            run: The run's name.
            rank: This rank.
            on_refused: Called, in the background, with what the server refuses a report with.
        """
        self._calls, self._liveness, self._on_refused = calls, liveness, on_refused
        self._run, self._rank, self._incarnation = run, rank, 0
        self._changed = threading.Condition()
        self._completed = self._reported = -1
        self._server = 0
        self._untold: dict[int, bytes] = {}
        self._telling = threading.Lock()
        self._error: SubbatchError | None = None
        self._thread: threading.Thread | None = None

    def start(self, incarnation: int, *, completed: int) -> None:
        """Begin to send."""
        self._incarnation, self._completed = incarnation, completed
        self._thread = threading.Thread(target=self._work, name="subbatch-report", daemon=True)
        self._thread.start()

    def completed(self, steps: int) -> None:
        """Tell the server, in the background, how many steps this rank has completed.

        Raises:
            SubbatchError: an earlier report was refused.
        """
        with self._changed:
            if self._error:
                raise self._error
            self._completed = steps
            self._changed.notify_all()

    def trained(self, steps: Mapping[int, bytes]) -> None:
        """Tell it, in the background and before the next push, of steps that are trained without a selection."""
        with self._changed:
            self._untold.update(steps)
            self._changed.notify_all()

    @property
    def untold(self) -> dict[int, bytes]:
        """Steps that the server hasn't been told of yet, with the hashes of their rows."""
        with self._changed:
            return dict(self._untold)

    def tell_trained(self, timeout_s: float) -> None:
        """Tell of these steps now, if there are any.

        Raises:
            grpc.RpcError: refused, or the server can't be reached.
        """
        with self._telling:
            while steps := sorted(self.untold.items())[:_STEPS_AT_ONCE]:
                request = pb.ReportTrainedRequest(
                    run=self._run, incarnation=self._incarnation, steps=trained_to_pb(dict(steps))
                )
                self._calls.stub.ReportTrained(request, timeout=timeout_s, metadata=self._calls.metadata)
                self._liveness.answered()
                with self._changed:
                    for step, _ in steps:
                        del self._untold[step]

    def forget(self) -> None:
        """The server may have restarted: it doesn't know how far this rank is."""
        with self._changed:
            self._reported = -1
            self._server += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, whose calls end with the channel."""
        with self._changed:
            self._changed.notify_all()

    def join(self) -> None:
        """Return when the thread has ended, after `close` and the channel's end."""
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        stopping = self._calls.stopping
        while True:
            with self._changed:
                self._changed.wait_for(lambda: stopping.is_set() or self._reported < self._completed or self._untold)
                completed, server = self._completed, self._server
            if stopping.is_set():
                return
            try:
                self._tell(completed)
            except grpc.RpcError as error:
                if stopping.is_set():
                    return
                if not is_retryable(error):
                    refused = from_rpc_error(error, doing=f"reporting progress of run {self._run!r}")
                    with self._changed:
                        self._error = refused
                    self._on_refused(refused)
                    return
                self._calls.traffic.retried("report")
                stopping.wait(random.uniform(0.1, 0.5))
                continue
            except ValueError:  # what gRPC raises where the channel was closed meanwhile
                return
            with self._changed:
                if server == self._server:  # else the server that heard it may be gone
                    self._reported = completed

    def _tell(self, completed: int) -> None:
        timeout_s = self._calls.config.call_timeout_s
        self.tell_trained(timeout_s)
        request = pb.ReportProgressRequest(
            run=self._run, incarnation=self._incarnation, rank=self._rank, completed=completed
        )
        self._calls.stub.ReportProgress(request, timeout=timeout_s, metadata=self._calls.metadata, wait_for_ready=True)
        self._liveness.answered()


def trained_to_pb(steps: Mapping[int, bytes]) -> list[pb.TrainedStep]:
    """The messages of steps that were trained without a selection, ascending."""
    return [pb.TrainedStep(step=step, rows_sha256=rows) for step, rows in sorted(steps.items())]
