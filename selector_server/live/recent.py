"""The newest steps of a run as its server sees them: when a selection began and was there, when it was trained."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable

from shared.pb.v1 import selector_pb2 as pb

# About ten minutes of steps of three seconds, and 30 KB.
_MOST_STEPS = 200


class Recent:
    """The newest steps of one incarnation; used on the server's event loop alone."""

    def __init__(self, ranks: Iterable[int]) -> None:
        """Begin with none.

        Args:
            ranks: Of the incarnation.
        """
        self._ranks = frozenset(ranks)
        self._steps: deque[pb.StepSeen] = deque(maxlen=_MOST_STEPS)
        # Those that aren't complete, with the ranks that they lack, oldest first.
        self._under_way: deque[tuple[pb.StepSeen, set[int]]] = deque()

    def selected(self, step: int, weights_version: int, times: pb.PhaseTimes) -> None:
        """The selection of a step is durable now, and there for the ranks.

        Args:
            step: Its number.
            weights_version: What it was scored with.
            times: Of its phases, the journal's included.
        """
        seen = pb.StepSeen(step=step, weights_version=weights_version, times=times, ready_unix_ns=time.time_ns())
        self._steps.append(seen)
        self._under_way.append((seen, set(self._ranks)))

    def completed(self, rank: int, completed: int, *, gone: Collection[int]) -> None:
        """A rank has completed so many steps.

        Args:
            rank: Its number.
            completed: Its count of steps.
            gone: Ranks that hold nobody back; without them a step may be complete.
        """
        now = time.time_ns()
        for seen, missing in self._under_way:
            if seen.step >= completed:
                break
            missing.discard(rank)
            seen.first_completed_unix_ns = seen.first_completed_unix_ns or now
        while self._under_way and self._under_way[0][1] <= set(gone):
            self._under_way.popleft()[0].last_completed_unix_ns = now

    def steps(self) -> list[pb.StepSeen]:
        """The steps, oldest first."""
        return list(self._steps)

    def missing(self) -> list[int]:
        """The ranks that haven't completed the oldest step that isn't complete."""
        return sorted(self._under_way[0][1]) if self._under_way else []
