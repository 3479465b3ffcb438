"""Which ranks of a run are there, and which have been silent for longer than their lease.

Pure bookkeeping on one monotonic clock. A rank is there as long as its stream of selections is open, however slow it
is, and for a lease after it was last heard: when its stream ended, when it reported, when the run was opened, or when
the server began. A rank that is gone holds nobody back. It counts again as soon as it is heard, from where it was: what
was selected meanwhile is in the journal, and is sent to it from the step it asks for. Where all are gone, the job is
away, and nothing is worked ahead for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MOST_NAMED_RANKS = 8


class Leases:
    """The ranks of one incarnation of a run. All times are seconds on one monotonic clock."""

    def __init__(self, ranks: Iterable[int], *, lease_s: float, now: float) -> None:
        """Begin with every rank just heard.

        Args:
            ranks: Their numbers.
            lease_s: How long a rank without a stream may be silent, > 0.
            now: The time.
        """
        self._lease_s = lease_s
        self._streams = dict.fromkeys(ranks, 0)
        self._heard = dict.fromkeys(self._streams, now)  # of those without a stream, when they were last heard
        self._gone: set[int] = set()

    def stream_opened(self, rank: int) -> bool:
        """A stream of a rank is open; whether the rank was gone."""
        self._streams[rank] += 1
        self._heard.pop(rank, None)
        return self._back(rank)

    def stream_ended(self, rank: int, now: float) -> None:
        """One of a rank's streams has ended; after a broken connection there may be two for a while."""
        self._streams[rank] -= 1
        if not self._streams[rank]:
            self._heard[rank] = now

    def heard(self, rank: int, now: float) -> bool:
        """A rank has called; whether it was gone."""
        if not self._streams[rank]:
            self._heard[rank] = now
        return self._back(rank)

    def expire(self, now: float) -> list[int]:
        """Let go of the ranks whose lease has run out by now; those that this is new of, ascending."""
        new = sorted(r for r, at in self._heard.items() if now - at >= self._lease_s and r not in self._gone)
        self._gone.update(new)
        return new

    @property
    def gone(self) -> frozenset[int]:
        """The ranks that hold nobody back; none where all are gone."""
        return frozenset(self._gone) if len(self._gone) < len(self._streams) else frozenset()

    @property
    def away(self) -> list[int]:
        """The ranks whose lease has run out, ascending."""
        return sorted(self._gone)

    def silent_seconds(self, now: float) -> dict[int, float]:
        """Of every rank without a stream, how long ago it was last heard."""
        return {rank: max(0.0, now - at) for rank, at in sorted(self._heard.items())}

    @property
    def next_expiry(self) -> float | None:
        """When the next lease runs out; None where none does."""
        return min((at + self._lease_s for rank, at in self._heard.items() if rank not in self._gone), default=None)

    def _back(self, rank: int) -> bool:
        was_gone = rank in self._gone
        self._gone.discard(rank)
        return was_gone


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Some ranks by number, and how many more there are."""
    named = ", ".join(map(str, ranks[:_MOST_NAMED_RANKS]))
    more = f" and {len(ranks) - _MOST_NAMED_RANKS} more" if len(ranks) > _MOST_NAMED_RANKS else ""
    return f"rank{'s' * (len(ranks) > 1)} {named}{more}"
