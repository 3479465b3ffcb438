"""A selection as a rank got it, whatever it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.records import PhaseTimes, Row, Selection


@dataclass(frozen=True)
class Received:
    """A selection as it arrived, with the server's phase times, its size on the wire, and when that was.

    Attributes:
        rows: What came with it, by position in the selection: all that this rank trains on; None where rows don't come
            with selections.
    """

    selection: Selection
    times: PhaseTimes
    num_bytes: int
    arrived_unix_ns: int
    rows: Mapping[int, Row] | None = None
