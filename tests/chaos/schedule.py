"""Which faults a soak makes, at which steps, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# One fault in so many strikes while the one before it still hurts.
_BURST_EVERY = 6
# Left to the job after the last fault: what that does must show.
_STEPS_AFTER = 15


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        number: From 0, in the order they strike.
        at_step: Strikes once the job has completed this many steps.
        kind: A key of `faults.KINDS`.
        seconds: How long what it does lasts, or the pause before what it killed is started again.
        rank: The rank it strikes, where it strikes one.
        alone: Whether the next one waits until the job trains again.
    """

    number: int
    at_step: int
    kind: str
    seconds: float
    rank: int
    alone: bool


def make_schedule(
    kinds: Sequence[str], *, seed: int, count: int, num_steps: int, num_ranks: int, most_seconds: float
) -> list[Fault]:
    """Faults of every kind equally often, in random order, spread over the run."""
    draw = random.Random(seed)
    if count < len(kinds):
        kinds = random.Random(seed).sample(list(kinds), k=count)
    order = [kinds[number % len(kinds)] for number in range(count)]
    draw.shuffle(order)
    last = num_steps - _STEPS_AFTER
    steps = sorted(1 + int((number + draw.random()) * (last - 1) / count) for number in range(count))
    return [
        Fault(
            number=number,
            at_step=steps[number],
            kind=kind,
            seconds=round(draw.uniform(0.2, most_seconds), 2),
            rank=draw.randrange(num_ranks),
            alone=number % _BURST_EVERY != _BURST_EVERY - 1,
        )
        for number, kind in enumerate(order)
    ]
