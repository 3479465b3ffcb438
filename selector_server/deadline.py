"""Which run is selected for next: the one whose trainer would be the first to wait.

Pure arithmetic on what a server sees: when the ranks report a step as done, and when a selection was there for them. A
run that waits already has a deadline in the past, which stays where it is while those of runs that are served move on,
so no run waits for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# How much of the newest step's time enters the estimate.
_NEWEST_SHARE = 0.3


@dataclass(frozen=True)
class Pace:
    """How fast a run's trainer is. All times are seconds on one monotonic clock.

    Attributes:
        completed: Steps that the rank that is furthest has completed.
        since: When it had.
        step_seconds: How long a step takes that doesn't wait for its selection; infinite until one was seen, so that
            who works ahead doesn't keep others waiting.
    """

    completed: int
    since: float
    step_seconds: float = math.inf

    def after(self, completed: int, *, now: float, there_since: float) -> Pace:
        """The pace after a report.

        Args:
            completed: Steps that a rank reports as completed; one that is behind the furthest changes nothing.
            now: When it did.
            there_since: When the selection of the oldest of the steps since was there: a trainer that waited for it has
                trained only since then.
        """
        if completed <= self.completed:
            return self
        seconds = max(0.0, now - max(self.since, there_since)) / (completed - self.completed)
        if math.isfinite(self.step_seconds):
            seconds = _NEWEST_SHARE * seconds + (1 - _NEWEST_SHARE) * self.step_seconds
        return replace(self, completed=completed, since=now, step_seconds=seconds)

    def deadline(self, step: int, *, there_since: float) -> float:
        """When the trainer will want the selection of `step`, or has wanted it since.

        Args:
            step: The first one without a selection.
            there_since: When the selection of the step that is trained now was there. A trainer that waited for it
                began only then; without it, a run that was just served would go first again, before those that wait.
        """
        if step <= self.completed:
            return self.since
        return max(self.since, there_since) + (step - self.completed) * self.step_seconds
