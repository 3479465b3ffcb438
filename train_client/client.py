"""One rank's connection to its selector server, in the calls that training makes. Knows nothing of training.

`calls` decides what is repeated, `stream` receives selections, `reports` sends progress, `waiting` says who is waited
for and when that ends.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping

from shared.config import ClientConfig
from shared.convert import run_to_pb
from shared.delta import encode_delta
from shared.errors import SubbatchError, WireError
from shared.pb.v1 import selector_pb2 as pb
from shared.records import RunInfo
from shared.weights import content_hash
from train_client.assembling import WantedRows
from train_client.calls import Calls
from train_client.received import Received
from train_client.reports import Reports, trained_to_pb
from train_client.stream import Look, SelectionStream
from train_client.traffic import Connection
from train_client.upload import Delta, push_messages
from train_client.waiting import Liveness, Wait

_SLOWEST_PUSH_BYTES_PER_S = 4 << 20
_NO_SERVER = "start the server, or correct client.selector"


class SelectorClient:
    """Calls of one rank for one run. `selection`, `report` and `push` may be called from different threads."""

    def __init__(self, config: ClientConfig, *, run: str, rank: int, wanted: WantedRows | None = None) -> None:
        """Prepare a channel; nothing is sent yet.

        Args:
            config: Of the connection.
            run: The run's name.
            rank: This rank.
            wanted: Rows that are to come with each selection.

        Raises:
            ConfigError: a token or TLS file that can't be read.
        """
        self._config, self._run, self._incarnation = config, run, 0
        self._pushed: tuple[int, str] | None = None
        self._calls = Calls(config)
        self._liveness = Liveness(self._calls, run=run)
        self._stream = SelectionStream(
            self._calls, self._liveness, run=run, rank=rank, on_broken=self._broken, wanted=wanted
        )
        self._reports = Reports(self._calls, self._liveness, run=run, rank=rank, on_refused=self._stream.fail)

    # ---- opening and closing

    def reach(self) -> None:
        """Make sure that the server can be reached from here, trusts this token and is trusted.

        Raises:
            UnavailableError: not within client.connect_timeout_s.
            SubbatchError: it refuses.
        """

        def asking(timeout_s: float) -> None:
            runs = self._calls.stub.WatchRun(pb.WatchRunRequest(), timeout=timeout_s, metadata=self._calls.metadata)
            next(iter(runs), None)  # of this token's runs, of which there may be none
            runs.cancel()

        self._calls.call(
            f"reaching {self._config.selector}",
            asking,
            kind="open",
            patience_s=self._config.connect_timeout_s,
            remedy=_NO_SERVER,
        )

    def open_run(
        self,
        info: RunInfo,
        *,
        cursor: int,
        restart: bool,
        checkpoint_incarnation: int = 0,
        trained: Mapping[int, bytes] | None = None,
    ) -> tuple[int, list[int]]:
        """Open the run as its only writer: its incarnation, and the versions of the weights to push.

        Args:
            info: The run.
            cursor: How many steps this job's checkpoint has attempted.
            restart: Whether to start over under a name that is taken.
            checkpoint_incarnation: That saved the checkpoint; 0 where there is none.
            trained: Steps that the checkpoint trained, or is to train, without a selection, and the hashes of their
                rows, where the server may not know of them.

        Raises:
            SubbatchError: what the server refuses, or UnavailableError where it can't be reached in time.
        """
        request = pb.OpenRunRequest(
            run=run_to_pb(info),
            cursor=cursor,
            restart=restart,
            open_id=uuid.uuid4().hex,
            checkpoint_incarnation=checkpoint_incarnation,
            trained=trained_to_pb(trained or {}),
        )
        reply = self._calls.call(
            f"opening run {self._run!r} at step {cursor} on {self._config.selector}",
            lambda timeout: self._calls.stub.OpenRun(request, timeout=timeout, metadata=self._calls.metadata),
            kind="open",
            patience_s=self._config.connect_timeout_s,
            # Opening builds the run's model on the server, which takes longer than a plain call.
            timeout_s=self._config.wait_timeout_s,
            remedy=_NO_SERVER,
        )
        self._incarnation = reply.incarnation
        return reply.incarnation, list(reply.missing_versions)

    def attach(self, incarnation: int, *, from_step: int, num_steps: int) -> None:
        """Begin to receive selections and to report progress, both in the background."""
        self._incarnation = incarnation
        self._stream.start(incarnation, from_step=from_step, num_steps=num_steps)
        self._reports.start(incarnation, completed=from_step)

    def close_run(self) -> None:
        """Tell the server that training is done.

        Raises:
            SubbatchError: refused, or the server can't be reached.
        """
        request = pb.CloseRunRequest(run=self._run, incarnation=self._incarnation)

        def closing(timeout_s: float) -> None:
            self._reports.tell_trained(timeout_s)
            self._calls.stub.CloseRun(request, timeout=timeout_s, metadata=self._calls.metadata)

        self._calls.call(f"closing run {self._run!r}", closing, kind="close")

    def close(self) -> None:
        """Stop the background threads and the channel."""
        self._calls.close()
        self._stream.close()
        self._reports.close()
        self._stream.join()
        self._reports.join()

    # ---- selections

    def selection(self, step: int, *, is_due: Callable[[], bool] = lambda: True) -> Received:
        """The selection of a step; steps must be asked for in order. Waits, and says what for.

        Args:
            step: Which step; none that was skipped.
            is_due: Whether anybody needs it yet; until then it is waited for in silence and without end.

        Raises:
            UnavailableError: none came within client.wait_timeout_s, the server is away and client.on_unavailable says
                to fail, or the client was closed.
            SubbatchError: the server refused the stream, or selecting failed.
        """
        received = self.selection_unless_skipped(step, is_due=is_due)
        if received is None:
            raise WireError(f"run {self._run!r}: the selection of step {step} was skipped, and is asked for now")
        return received

    def selection_unless_skipped(self, step: int, *, is_due: Callable[[], bool]) -> Received | None:
        """The same; None as soon as the step is skipped."""
        return self._stream.take(step, is_due=is_due)

    def wait_for_selection(self, step: int) -> Wait:
        """A wait, from now on, for the selection of a step."""
        return self._stream.wait_for(step)

    def look(self, step: int, wait: Wait) -> Look:
        """Wait a moment for a step's selection and say how it stands.

        Raises:
            UnavailableError: the server answers, but hasn't selected the step in time.
            SubbatchError: none will come.
        """
        return self._stream.look(step, wait)

    def skip_to(self, step: int) -> None:
        """Selections of steps before this one aren't wanted any more."""
        self._stream.skip_to(step)

    def fail_selections(self, error: SubbatchError) -> None:
        """Let whoever waits for a selection hear of an error, after which none can come."""
        self._stream.fail(error)

    # ---- progress

    def report(self, completed: int) -> None:
        """Tell the server, in the background, how many steps this rank has completed.

        Raises:
            SubbatchError: an earlier report was refused.
        """
        self._reports.completed(completed)

    def report_trained(self, steps: Mapping[int, bytes]) -> None:
        """Tell it, in the background and before anything is pushed, of steps that are trained without a selection.

        Args:
            steps: The hash of each one's rows.
        """
        self._reports.trained(steps)

    @property
    def untold_trained(self) -> dict[int, bytes]:
        """Steps trained without a selection that the server hasn't confirmed."""
        return self._reports.untold

    # ---- weights

    def push(self, version: int, payload: bytes | memoryview, before: memoryview | None = None) -> None:
        """Upload one version of the weights; returns when it is durable on the server, until when it may not change.

        Args:
            version: Of the weights.
            payload: Their safetensors.
            before: The payload that was pushed last, where only what has changed since shall be sent.

        Raises:
            SubbatchError: refused, or the server stayed away.
        """
        header = pb.PushWeightsHeader(
            run=self._run,
            incarnation=self._incarnation,
            version=version,
            num_bytes=len(payload),
            sha256=content_hash(payload),
            next_is_delta=self._config.push_deltas,
        )
        delta = self._delta(before, payload)

        def pushing(timeout_s: float) -> pb.PushWeightsReply:
            # Weights are taken in order, and steps that were trained without a selection leave gaps in it.
            self._reports.tell_trained(timeout_s)
            nonlocal delta
            reply = self._send(delta.header(header), delta.chunks, timeout_s) if delta else None
            if reply is None or reply.needs_whole:
                delta = None
                reply = self._send(header, payload, timeout_s)
            return reply

        config, start_ns = self._config, time.time_ns()
        reply = self._calls.call(
            f"run {self._run!r}: pushing weights version {version}",
            pushing,
            kind="push",
            patience_s=math.inf if config.on_unavailable == "sample" else config.wait_timeout_s,
            timeout_s=config.call_timeout_s + len(payload) / _SLOWEST_PUSH_BYTES_PER_S,
        )
        self._liveness.answered()
        if reply.durable_version != version:
            raise WireError(f"run {self._run!r}: pushed weights version {version}, got {reply.durable_version} back")
        sent = len(delta.chunks) if delta else len(payload)
        self._calls.traffic.pushed(version, sent, start_ns=start_ns, end_ns=time.time_ns())
        self._pushed = version, header.sha256

    def _delta(self, before: memoryview | None, payload: bytes | memoryview) -> Delta | None:
        """What to send in the payload's place; None where there is nothing shorter."""
        if before is None or self._pushed is None:
            return None
        chunks = encode_delta(before, payload)
        return Delta(*self._pushed, chunks) if chunks else None

    def _send(self, header: pb.PushWeightsHeader, chunks: bytes | memoryview, timeout_s: float) -> pb.PushWeightsReply:
        reply: pb.PushWeightsReply = self._calls.push_weights(
            push_messages(header, chunks), timeout=timeout_s, metadata=self._calls.metadata
        )
        return reply

    def wait_for_push(self, step: int) -> Wait:
        """A wait, at a step, for a push to be durable."""
        return Wait(self._liveness, self._calls, run=self._run, step=step, what="weights to be durable on the server")

    def connection(self, *, pushes_under_way: int) -> Connection:
        """How it stands with the server now; asks nobody."""
        return Connection(self._liveness.away_s, self._stream.next_to_arrive, pushes_under_way, self._calls.traffic)

    def _broken(self) -> None:
        self._reports.forget()
