"""What went between one rank and its server, counted for metrics."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from train_client.metrics import CALLS


class Traffic:
    """Counts of one rank, from several of its threads.

    Attributes:
        retries: By call, how often it failed and was made again.
        pushes: Weights versions that the server has confirmed.
        push_bytes: Their bytes.
        push_seconds: How long their uploads took.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.retries = dict.fromkeys(CALLS, 0)
        self.pushes, self.push_bytes, self.push_seconds = 0, 0, 0.0

    def retried(self, call: str) -> None:
        """A call, one of `metrics.CALLS`, failed and is made again."""
        with self._lock:
            self.retries[call] += 1

    def pushed(self, num_bytes: int, seconds: float) -> None:
        """Weights are durable on the server."""
        with self._lock:
            self.pushes += 1
            self.push_bytes += num_bytes
            self.push_seconds += seconds


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
