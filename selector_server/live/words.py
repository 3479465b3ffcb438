"""Short words for a run's state, as the one-shot status and the terminal view print them."""

from __future__ import annotations

from selector_server.leases import ranks_in_words
from shared.pb.v1 import selector_pb2 as pb

# By level, a mark that can be told without colour, and rich's style.
LEVELS = {
    pb.Verdict.GOOD: ("✓ good", "green"),
    pb.Verdict.STARTING: ("… starting", "default"),
    pb.Verdict.WAITING: ("! waiting", "yellow"),
    pb.Verdict.STALLED: ("✕ stalled", "red"),
    pb.Verdict.FAILED: ("✕ failed", "red"),
    pb.Verdict.DONE: ("✓ done", "green"),
}
# More ranks than these are told as a range.
_MOST_LISTED_RANKS = 8


def trained_steps(status: pb.RunStatus) -> int:
    """How many steps all ranks that are there have trained; of a run whose ranks are all gone, the furthest."""
    here = [steps for rank, steps in status.completed.items() if rank not in status.gone_ranks]
    return min(here) if here else max(status.completed.values(), default=0)


def completed_by_rank(status: pb.RunStatus) -> str:
    """How many steps each rank has completed; of many ranks, the fewest and the most."""
    completed = sorted(status.completed.items())
    if len(completed) <= _MOST_LISTED_RANKS:
        return " ".join(f"{rank}:{steps}" for rank, steps in completed)
    steps = status.completed.values()
    return f"{min(steps)} to {max(steps)}"


def ranks_there(status: pb.RunStatus) -> str:
    """How many ranks are there, and which are gone since when."""
    there = f"{len(status.completed) - len(status.gone_ranks)} of {len(status.completed)}"
    if not status.gone_ranks:
        return there
    longest = max(status.silent_seconds[rank] for rank in status.gone_ranks)
    return f"{there}; {ranks_in_words(status.gone_ranks)} gone for {longest:.0f} s"


def duration(seconds: float) -> str:
    """A time with the unit that suits it."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
