"""Waiting for a server without hanging: who keeps this rank waiting, since when, and when that is long enough.

A server that answers isn't away, however long it scores; one that doesn't is away from the first question that it left
unanswered. Whoever waits asks now and then; any call that succeeds meanwhile counts as an answer.
"""

from __future__ import annotations

import logging
import time

import grpc

from shared.errors import ERROR_KEY, UnavailableError, is_retryable
from shared.handshake import connection_trouble
from shared.pb.v1 import selector_pb2 as pb
from train_client.calls import LOG_EVERY_S, REMEDY, Calls

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0
# A server known to be away is asked in passing, since training goes on.
_PASSING_ANSWER_S = 0.5


class Liveness:
    """Whether a run's server answers one rank, and what the server says it waits for itself."""

    def __init__(self, calls: Calls, *, run: str) -> None:
        self._calls, self._run = calls, run
        self._away_since: float | None = None

    def answered(self) -> None:
        """The server has answered some call."""
        self._away_since = None

    @property
    def away_s(self) -> float:
        """For how long the server has not answered; 0 where it did when it was asked last."""
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since

    def ask(self, step: int) -> str:
        """Who keeps this rank from the selection of a step, in words."""
        asked, patience_s = time.monotonic(), _ANSWER_S if self._away_since is None else _PASSING_ANSWER_S
        calls = self._calls
        try:
            stream = calls.stub.WatchRun(pb.WatchRunRequest(run=self._run), timeout=patience_s, metadata=calls.metadata)
            status = next(iter(stream))
            stream.cancel()
        except grpc.RpcError as error:
            if not is_retryable(error) or ERROR_KEY in dict(error.trailing_metadata() or ()):
                self.answered()
                return f"the server refuses to say: {error.details()}"
            self._away_since = asked if self._away_since is None else self._away_since
            is_late, trouble = error.code() is _LATE, connection_trouble(error.details() or "")
            why = "doesn't answer: it stands still, or packets are lost" if is_late else f"can't be reached: {trouble}"
            return f"network or server: {calls.config.selector} {why}"
        except (StopIteration, ValueError):  # the server ended the stream, or this side closed the channel
            return f"network or server: {calls.config.selector} ended the conversation"
        self.answered()
        if status.next_step > step:
            return "the network: the server has selected it, and it hasn't arrived"
        return f"the server waits for {status.waits_for}" if status.waits_for != "scoring" else "the server is scoring"


_LATE = grpc.StatusCode.DEADLINE_EXCEEDED


class Wait:
    """One wait of this rank, from when it began to stand still for it.

    Attributes:
        was_away: Whether the server was away when it began.
    """

    def __init__(self, liveness: Liveness, calls: Calls, *, run: str, step: int, what: str) -> None:
        """Begin.

        Args:
            liveness: Of the server.
            calls: To it.
            run: The run's name.
            step: The step that can't go on.
            what: What it waits for, after "waiting for".
        """
        self._liveness, self._config = liveness, calls.config
        self._where, self._what, self._step = f"run {run!r}, step {step}", what, step
        self._began, self._since = time.monotonic(), time.strftime("%H:%M:%S")
        is_patient = self._config.on_unavailable == "wait"
        self._look_every_s = LOG_EVERY_S if is_patient else min(1.0, self._config.away_after_s / 4)
        self._next_log = self._began + LOG_EVERY_S
        # Each step of a training that goes on without its server asks once more.
        self.was_away = liveness.away_s > 0.0
        self._next_look = self._began + (0.0 if self.was_away else self._look_every_s)

    def is_away(self) -> bool:
        """Whether training is to go on without the server, which client.on_unavailable alone may say.

        Call it every so often; it asks the server now and then, and says in the log who is waited for.

        Raises:
            UnavailableError: the server is away and client.on_unavailable says to fail, or this has taken longer than
                client.wait_timeout_s.
        """
        config, now = self._config, time.monotonic()
        is_over = now - self._began > config.wait_timeout_s
        if now < self._next_look and not is_over:
            return False
        self._next_look = now + self._look_every_s
        blame = self._liveness.ask(self._step)
        away_s = self._liveness.away_s
        waited = f"since {self._since} ({time.monotonic() - self._began:.0f} s)"
        if away_s and away_s >= config.away_after_s and config.on_unavailable != "wait":
            if config.on_unavailable == "sample":
                return True
            raise UnavailableError(
                f"{self._where}: waiting for {self._what} {waited}, and the server has been away for {away_s:.0f} s "
                f"(client.on_unavailable is fail): {blame}: start it again where it was, then resume from the last "
                "checkpoint"
            )
        if is_over and not (away_s and config.on_unavailable == "sample"):
            raise UnavailableError(
                f"{self._where}: no {self._what} within {config.wait_timeout_s:.0f} s, {waited}: {blame}: {REMEDY}"
            )
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY_S
            logger.warning("%s: waiting for %s %s: %s", self._where, self._what, waited, blame)
        return False
