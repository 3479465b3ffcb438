"""A selection as a rank got it, whatever it came from."""

from __future__ import annotations

from dataclasses import dataclass

from shared.records import PhaseTimes, Selection


@dataclass(frozen=True)
class Received:
    """A selection as it arrived, with the server's phase times, its size on the wire, and when that was."""

    selection: Selection
    times: PhaseTimes
    num_bytes: int
    arrived_unix_ns: int
