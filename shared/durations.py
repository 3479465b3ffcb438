"""How long things took, as a histogram that costs next to nothing to add to."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

# Upper bounds in seconds.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)


@dataclass
class Durations:
    """How many durations there were, by size: a histogram. Not more than one thread at a time may add.

    Attributes:
        counts: By bucket, the last one of those longer than every bound.
        total: Their sum in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """There was one more."""
        self.counts[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds in seconds, and how many were at most that long."""
        so_far, buckets = 0, []
        for bound, count in zip((*_BOUNDS, math.inf), self.counts, strict=True):
            so_far += count
            buckets.append(("+Inf" if math.isinf(bound) else repr(bound), float(so_far)))
        return buckets
