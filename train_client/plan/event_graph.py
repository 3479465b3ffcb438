"""A run as a graph of events that wait for each other, and the loop in it that sets the pace.

Three events repeat: E_t, the ranks end step t; F_t, the selection of step t is journalled; D_v, weights version v is
durable. Each starts when the latest of those it waits for has happened, and takes its time:

    E_t = max(E_{t-1}, F_t + deliver) + train   (+ snapshot where version t + 1 is pushed)
    F_t = max(F_{t-1}, D_{w(t)}, E_{t-1-lookahead}) + select   (+ load where w(t) ≠ w(t-1))
    D_v = max(D_{v-K}, E_{v-1}) + upload

Such a system settles at a pace of its own: the mean step time is the largest ratio, over all loops of the graph, of the
seconds in a loop to the steps it spans (the eigenvalue of the max-plus matrix; Baccelli et al., *Synchronization and
Linearity*, 1992, §2.3). The loop that attains it is the bottleneck, piece by piece.

That a trainer holds at most two snapshots adds E_{v-1} ≥ D_{v-2K} + snapshot. Its one loop, (upload + snapshot) / 2K,
is never longer than both upload / K and snapshot / K, so it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.timing import Timing

_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Pieces:
    """Seconds of each piece, as laid out."""

    train: float
    snapshot: float
    upload: float
    load: float
    select: float
    deliver: float


@dataclass(frozen=True)
class Arc:
    """One event waits for another.

    Attributes:
        source: The event that is waited for: its kind and its step's place in the period of K steps.
        target: The event that waits.
        steps: How many steps before the target's the source's is, >= 0.
        pieces: What happens between the two: names of `Pieces`.
    """

    source: tuple[str, int]
    target: tuple[str, int]
    steps: int
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Loop:
    """A loop of events, and so a lower bound of the step time.

    Attributes:
        seconds_per_step: Seconds in the loop / steps that it spans.
        steps: The steps it spans.
        pieces: How often each piece is in it.
    """

    seconds_per_step: float
    steps: int
    pieces: Mapping[str, int]


def arcs(timing: Timing) -> list[Arc]:
    """Who waits for whom, in the steady state of a run."""
    period = timing.push_every
    # Far enough for everything that is waited for to lie past step 0; where, doesn't matter.
    first = period * (timing.staleness // period + timing.lookahead // period + 3)
    rules = Timing(
        num_steps=2**62, staleness=timing.staleness, push_every=period, lookahead=timing.lookahead, scores=True
    )
    found = []
    for step in range(first, first + period):
        place = step % period
        version = rules.weights_version(step)
        trained = ("train", "snapshot") if rules.steps_using(step + 1) else ("train",)
        selected = ("select",) if version == rules.weights_version(step - 1) else ("load", "select")
        before = ("E", (step - 1) % period)
        found += [
            Arc(before, ("E", place), 1, trained),
            Arc(("F", place), ("E", place), 0, ("deliver", *trained)),
            Arc(("F", (step - 1) % period), ("F", place), 1, selected),
            Arc(("D", 0), ("F", place), step - version, selected),
            Arc(("E", (step - 1 - timing.lookahead) % period), ("F", place), 1 + timing.lookahead, selected),
        ]
    found.append(Arc(("D", 0), ("D", 0), period, ("upload",)))
    found.append(Arc(("E", period - 1), ("D", 0), 1, ("upload",)))
    return found


def slowest_loop(graph: Sequence[Arc], pieces: Pieces) -> Loop:
    """The loop that sets the pace.

    Starts from the trainers' own loop and replaces it by a slower one, found as a cycle of positive length when every
    step is charged at the pace so far (Bellman and Ford), until there is none: exact, in a few rounds.
    """
    seconds = [sum(getattr(pieces, piece) for piece in arc.pieces) for arc in graph]
    own = [arc for arc in graph if arc.source[0] == arc.target[0] == "E"]
    best = _loop(own, pieces)
    while True:
        reduced = [s - best.seconds_per_step * arc.steps for s, arc in zip(seconds, graph, strict=True)]
        cycle = _positive_cycle(graph, reduced, slack=_TOLERANCE * (sum(seconds) + 1e-300))
        found = _loop(cycle, pieces) if cycle else best
        if found.seconds_per_step <= best.seconds_per_step:
            return best
        best = found


def _loop(cycle: Sequence[Arc], pieces: Pieces) -> Loop:
    counts = Counter(piece for arc in cycle for piece in arc.pieces)
    steps = sum(arc.steps for arc in cycle)
    return Loop(sum(count * getattr(pieces, piece) for piece, count in counts.items()) / steps, steps, dict(counts))


def _positive_cycle(graph: Sequence[Arc], lengths: Sequence[float], *, slack: float) -> list[Arc]:
    """A cycle of positive length, or nothing where there is none."""
    reached = dict.fromkeys((arc.target for arc in graph), 0.0)
    came_by: dict[tuple[str, int], Arc] = {}
    for _ in range(len(reached) + 1):
        changed = False
        for arc, length in zip(graph, lengths, strict=True):
            if reached[arc.source] + length > reached[arc.target] + slack:
                reached[arc.target] = reached[arc.source] + length
                came_by[arc.target] = arc
                changed = True
        if not changed:
            return []
        if cycle := _cycle_of(came_by):
            return cycle
    return []


def _cycle_of(came_by: Mapping[tuple[str, int], Arc]) -> list[Arc]:
    """A cycle among the arcs that nodes were reached by, which has a positive length; nothing where there is none."""
    done: set[tuple[str, int]] = set()
    for start in came_by:
        path: list[Arc] = []
        on_path: dict[tuple[str, int], int] = {}
        node = start
        while node in came_by and node not in done and node not in on_path:
            on_path[node] = len(path)
            path.append(came_by[node])
            node = came_by[node].source
        if node in on_path:
            return path[on_path[node] :]
        done.update(on_path)
    return []
