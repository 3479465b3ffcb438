"""What may overlap, as arithmetic: which weights a step's selection uses, and which weights are worth pushing.

Pure functions of a run's settings, so that the network's timing can't change a run and both sides agree unasked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """The timing of one run: num_steps, staleness S, push_every K, lookahead, and whether rows are scored at all."""

    num_steps: int
    staleness: int
    push_every: int
    lookahead: int
    scores: bool = True

    def weights_version(self, step: int) -> int:
        """The version behind the selection of `step`: K · floor(max(0, t − S) / K); 0 where nothing is scored."""
        if not self.scores:
            return 0
        return max(0, step - self.staleness) // self.push_every * self.push_every

    def steps_using(self, version: int) -> range:
        """The steps of the run whose selection uses `version`; empty where no step does."""
        if not self.scores or version < 0 or version % self.push_every:
            return range(0)
        first = 0 if version == 0 else version + self.staleness
        return range(min(first, self.num_steps), min(version + self.staleness + self.push_every, self.num_steps))

    def versions_needed(self, cursor: int) -> list[int]:
        """Versions up to `cursor` that the selection of a step at or past `cursor` uses, oldest first.

        These are the weights a trainer at `cursor` has behind it: it holds at most the newest of them.
        """
        if not self.scores or cursor >= self.num_steps:
            return []
        oldest = self.weights_version(cursor)
        return [v for v in range(oldest, cursor + 1, self.push_every) if self.steps_using(v)]
