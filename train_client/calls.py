"""Calls to a selector server that end: each has a deadline, and is repeated, with jitter, only where that is safe.

Every call of this product may be repeated: an opening carries an id, a push the hash of its content, a report says how
many steps there are, not that there is one more. What the server refuses is never asked again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from shared.config import ClientConfig
from shared.errors import UnavailableError, from_rpc_error, is_retryable
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.transport import call_metadata, open_channel
from train_client.traffic import Traffic
from train_client.upload import PUSH_METHOD

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOG_EVERY_S = 10.0
REMEDY = "look at the server's log, then resume from the last checkpoint"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0


class Calls:
    """One rank's channel to its server.

    Attributes:
        stub: Of the service; calls take `metadata` and a timeout.
        push_weights: The method that takes a push's messages as bytes.
        stopping: Set when the channel is closed; everything that waits here looks at it.
        traffic: What was sent and repeated.
    """

    def __init__(self, config: ClientConfig) -> None:
        """Prepare a channel; nothing is sent yet.

        Raises:
            ConfigError: a token or TLS file that can't be read.
        """
        self.config = config
        self.metadata = call_metadata(config)
        self._channel = open_channel(config.selector, config.tls)
        self.stub = selector_pb2_grpc.SelectorServiceStub(self._channel)
        self.push_weights = self._channel.stream_unary(
            PUSH_METHOD, response_deserializer=pb.PushWeightsReply.FromString
        )
        self.stopping = threading.Event()
        self.traffic = Traffic()

    def call(
        self,
        doing: str,
        call: Callable[[float], T],
        *,
        kind: str,
        patience_s: float | None = None,
        timeout_s: float | None = None,
        remedy: str = REMEDY,
    ) -> T:
        """Make a call that is safe to repeat, again and again while the server is away.

        Args:
            doing: What for, in words that name the run.
            call: Makes the call with a deadline in seconds.
            kind: One of `metrics.CALLS`, which repetitions are counted by.
            patience_s: How long to try again; client.call_timeout_s unless given.
            timeout_s: The deadline of each attempt; client.call_timeout_s unless given.
            remedy: What a person can do where patience ends.

        Raises:
            UnavailableError: the server stayed away, or the channel was closed.
            SubbatchError: the server refused.
        """
        patience_s = self.config.call_timeout_s if patience_s is None else patience_s
        began = time.monotonic()
        next_log, pause_s = began, _FIRST_PAUSE_S
        while True:
            try:
                return call(timeout_s or self.config.call_timeout_s)
            except grpc.RpcError as error:
                waited = time.monotonic() - began
                failure = from_rpc_error(error, doing=doing)
                if self.stopping.is_set() or not is_retryable(error):
                    raise failure from None
                if waited > patience_s:
                    raise UnavailableError(f"{failure}: gave up after {waited:.0f} s: {remedy}") from None
                if time.monotonic() >= next_log:
                    next_log = time.monotonic() + LOG_EVERY_S
                    logger.warning(
                        "%s; trying again, since %.0f s, for %.0f s more", failure, waited, patience_s - waited
                    )
                self.traffic.retried(kind)
                if self.stopping.wait(random.uniform(0.5, 1.0) * pause_s):
                    raise failure from None
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except ValueError:  # what gRPC raises where the channel was closed meanwhile
                if self.stopping.is_set():
                    raise UnavailableError(f"{doing}: the connection to the server was closed") from None
                raise

    def close(self) -> None:
        """End every call and let nobody try again."""
        self.stopping.set()
        self._channel.close()
