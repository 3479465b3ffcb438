"""The costs of one preset with one adapter, and the bound that they are held against."""

from __future__ import annotations

from dataclasses import dataclass

from selector_server.bench.overhead.operations import Operation
from selector_server.bench.paired import Interval

STEP_SECONDS, LIMIT = 1.0, 0.02
SIDES = ("server", "trainer")
KINDS = ("selection", "weights", "beside")


@dataclass(frozen=True)
class Measured:
    """A preset with an adapter.

    Attributes:
        preset: Its name.
        adapter: A key of `ADAPTERS`.
        weights_bytes: Of one version of the weights.
        journal_bytes: What a step adds to the journal.
        operations: What was timed.
        seconds: Of each operation, one.
        totals: Shares of a step of one second, by side and kind, and by side for all kinds together as `all`.
    """

    preset: str
    adapter: str
    weights_bytes: int
    journal_bytes: int
    operations: tuple[Operation, ...]
    seconds: tuple[Interval, ...]
    totals: dict[tuple[str, str], Interval]
