"""Notices that a scoring process has died, is stopped or hangs, and ends this one: nobody waits for the dead.

Each worker has a socket to rank 0. Both ends send a beat every now and then, from a thread of their own, and say with
it how far their work is. A closed socket is a death; silence, or work that doesn't move, is a hang. Whoever notices
ends its process at once: its other threads may be waiting in a collective operation, which nothing interrupts, and the
journal is whole after any end.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import cast

logger = logging.getLogger(__name__)

# Whether there is work to do, and how far it is.
_BEAT = struct.Struct("<?q")
_SECONDS_BETWEEN_BEATS = 0.5
# Beats are rarer where a silent peer is given more time than this many: its socket holds all it doesn't read.
_MOST_UNREAD_BEATS = 100
_EXIT_ERROR = 1
_REMEDY = "this process ends too; start the server again, and its runs go on at the same step"


@dataclass
class Peer:
    """The process at the other end.

    Attributes:
        name: What an error calls it: its rank and pid.
        connection: A socket that nobody else uses.
        beat: The last one heard.
        silent_s: How long it hasn't been heard, in time that this process was running.
        stuck_s: How long it has been at work without getting further, in the same time.
    """

    name: str
    connection: Connection
    beat: tuple[bool, int] = (False, 0)
    silent_s: float = 0.0
    stuck_s: float = 0.0


Loss = tuple[Peer, str]


def end_process(trouble: str) -> None:
    """Log an error and end this process, whatever its threads are at."""
    logger.error("%s", trouble)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(_EXIT_ERROR)


class Pulse:
    """Beats for this process and listens to its peers, from `start` to `stop`."""

    def __init__(
        self, peers: Sequence[Peer], *, timeout_s: float, on_loss: Callable[[str], None] = end_process
    ) -> None:
        """Prepare.

        Args:
            peers: Whom to listen to.
            timeout_s: How long a peer may be silent, or at work without getting further.
            on_loss: Called once, in the pulse's thread, with what happened to whom; as a rule it doesn't return.
        """
        self._peers = {peer.connection: peer for peer in peers}
        self._timeout_s, self._on_loss = timeout_s, on_loss
        self._interval_s = max(min(_SECONDS_BETWEEN_BEATS, timeout_s / 4), timeout_s / _MOST_UNREAD_BEATS)
        self._beat = (False, 0)
        self._peers_may_go = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin to beat and to listen."""
        self._thread.start()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While there is work to do, getting no further is hanging."""
        self._beat = (True, self._beat[1] + 1)
        try:
            yield
        finally:
            self._beat = (False, self._beat[1] + 1)

    def advance(self) -> None:
        """A part of the work is done."""
        self._beat = (self._beat[0], self._beat[1] + 1)

    def stop(self) -> None:
        """Stop and close the sockets, by which the peers know that this process is done."""
        self._stopping.set()
        self._thread.join()
        for connection in self._peers:
            connection.close()

    def let_peers_go(self) -> None:
        """From now on, a peer that closes its socket is no loss."""
        self._peers_may_go = True

    def outlast_peers(self) -> None:
        """Go on until every peer has closed its socket."""
        self.let_peers_go()
        self._thread.join()

    def settle(self, trouble: str) -> None:
        """Somebody seems to be lost: wait until it is known who, or say what is known."""
        self._thread.join(timeout=self._timeout_s + 2 * self._interval_s)
        self._on_loss(f"{trouble}: {_REMEDY}")

    def _run(self) -> None:
        listening = dict(self._peers)
        while listening and not self._stopping.is_set():
            lost = self._send(listening) or self._hear(listening) or self._judge(listening)
            if lost is None:
                continue
            peer, trouble = lost
            del listening[peer.connection]
            if not self._peers_may_go and not self._stopping.is_set():
                self._on_loss(f"{peer.name} {trouble}: {_REMEDY}")
                return

    def _send(self, listening: Mapping[Connection, Peer]) -> Loss | None:
        for connection, peer in listening.items():
            try:
                connection.send_bytes(_BEAT.pack(*self._beat))
            except OSError:
                return peer, "has died"
        return None

    def _hear(self, listening: Mapping[Connection, Peer]) -> Loss | None:
        """Read what comes until it is time for the next beat."""
        end = time.monotonic() + self._interval_s
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            for ready in wait(list(listening), timeout=left):
                peer = listening[cast("Connection", ready)]
                try:
                    working, progress = _BEAT.unpack(peer.connection.recv_bytes(_BEAT.size))
                except (EOFError, OSError):
                    return peer, "has died"
                if (working, progress) != peer.beat:
                    peer.stuck_s = 0.0
                peer.beat, peer.silent_s = (working, progress), 0.0
        return None

    def _judge(self, listening: Mapping[Connection, Peer]) -> Loss | None:
        """Count the time since the last beat; a clock would count it, too, while this process was stopped."""
        for peer in listening.values():
            peer.silent_s += self._interval_s
            peer.stuck_s += self._interval_s if peer.beat[0] else 0.0
            if peer.silent_s > self._timeout_s:
                return peer, f"hasn't been heard for {peer.silent_s:.0f} s, it is stopped or hangs"
            if peer.stuck_s > self._timeout_s:
                return peer, f"is at work and has got no further for {peer.stuck_s:.0f} s, it hangs"
        return None
