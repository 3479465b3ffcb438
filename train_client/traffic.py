"""What went between one rank and its server, counted for metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from train_client.metrics import CALLS


class Traffic:
    """Counts of one rank, from several of its threads.

    Attributes:
        retries: By call, how often it failed and was made again.
        pushes: Weights versions that the server has confirmed.
        push_bytes: Their bytes.
        push_seconds: How long their uploads took.
        on_pushed: Called in the background after each: with version, bytes, start and end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.retries = dict.fromkeys(CALLS, 0)
        self.pushes, self.push_bytes, self.push_seconds = 0, 0, 0.0
        self.on_pushed: Callable[[int, int, int, int], None] = lambda *_: None

    def retried(self, call: str) -> None:
        """A call, one of `metrics.CALLS`, failed and is made again."""
        with self._lock:
            self.retries[call] += 1

    def pushed(self, version: int, num_bytes: int, *, start_ns: int, end_ns: int) -> None:
        """Weights are durable on the server; times are those of `time.time_ns`."""
        with self._lock:
            self.pushes += 1
            self.push_bytes += num_bytes
            self.push_seconds += (end_ns - start_ns) / 1e9
        self.on_pushed(version, num_bytes, start_ns, end_ns)


@dataclass(frozen=True)
class Connection:
    """How one rank stands with its server at one moment.

    Attributes:
        away_s: For how long the server hasn't answered; 0 where it did when it was asked last.
        next_to_arrive: The first step whose selection hasn't come.
        pushes_under_way: Weights versions that the server hasn't confirmed.
        traffic: The counts so far.
    """

    away_s: float
    next_to_arrive: int
    pushes_under_way: int
    traffic: Traffic
