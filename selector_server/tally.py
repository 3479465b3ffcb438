"""What a server has done for one run since it began to serve it, for its metrics.

Plain counting on the event loop, where things happen; names and Prometheus come in when somebody asks, in `collect.py`.
"""

from __future__ import annotations

import time

from selector_server.counted import Counted, Counts
from selector_server.metrics import PHASES, STATES
from shared.durations import Durations
from shared.pb.v1 import selector_pb2 as pb


class StateClock:
    """How long a run was at what. All times are seconds on one monotonic clock."""

    def __init__(self, now: float) -> None:
        self.state = STATES[0]
        self._since = now
        self._seconds = dict.fromkeys(STATES, 0.0)

    def enter(self, state: str, now: float) -> None:
        """From now on it is at this."""
        self._seconds[self.state] += now - self._since
        self.state, self._since = state, now

    def seconds(self, now: float) -> dict[str, float]:
        """By state, how long it was at it until now."""
        return self._seconds | {self.state: self._seconds[self.state] + now - self._since}


class Tally:
    """The counts of one run; used on the server's event loop alone.

    Attributes:
        drawn: Rows of large batches by source, int64 [sources]; None before the first.
        picked: Rows of sub-batches by source.
    """

    def __init__(self) -> None:
        self.clock = StateClock(time.monotonic())
        self.selections, self.staleness = 0, 0
        self.selection_seconds = Durations()
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.drawn: Counts | None = None
        self.picked: Counts | None = None
        self.drawn_tokens = self.picked_tokens = self.skipped = 0
        self.sent, self.sent_bytes = 0, 0
        self.pushes, self.push_bytes, self.push_seconds = 0, 0, 0.0

    def selected(self, message: pb.SelectionMessage, counted: Counted, *, journal_seconds: float) -> None:
        """A selection is durable."""
        self.selections += 1
        self.staleness = message.step - message.weights_version
        times = message.times
        seconds = {
            "load": times.load_seconds,
            "draw": times.draw_seconds,
            "score": times.score_seconds,
            "pick": times.pick_seconds,
            "journal": journal_seconds,
        }
        for phase, value in seconds.items():
            self.phases[phase] += value
        self.selection_seconds.add(sum(seconds.values()))
        self.drawn = counted.drawn + (0 if self.drawn is None else self.drawn)
        self.picked = counted.picked + (0 if self.picked is None else self.picked)
        self.drawn_tokens += counted.drawn_tokens
        self.picked_tokens += counted.picked_tokens
        self.skipped += counted.skipped

    def rows_were_sent(self, num_bytes: int) -> None:
        """Rows that belong to a selection have gone out to a rank."""
        self.sent_bytes += num_bytes

    def was_sent(self, num_bytes: int) -> None:
        """A selection was given to a rank's stream."""
        self.sent += 1
        self.sent_bytes += num_bytes

    def pushed(self, num_bytes: int, seconds: float) -> None:
        """Weights are durable."""
        self.pushes += 1
        self.push_bytes += num_bytes
        self.push_seconds += seconds
