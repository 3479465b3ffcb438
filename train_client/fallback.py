"""Which steps a job trains without a selection, since its server is away: agreed by all ranks, the same ones for ever.

A fallback step needs no weights on the server. Weights that couldn't be sent while it was away are given up but for the
newest, so the steps that would have used them are fallback steps, too.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from shared.dataset import Store
from shared.errors import ConfigError
from shared.fallback import fallback_selection, rows_hash
from shared.records import PhaseTimes, RunInfo
from shared.timing import Timing
from train_client.received import Received


class Fallback:
    """One run's fallback steps on one rank.

    Attributes:
        end: Steps before this one that have no selection yet are fallback steps.
    """

    def __init__(self, store: Store | None) -> None:
        """Begin with none; without a store there can be none."""
        self._store = store
        self._info: RunInfo | None = None
        self.end = 0

    def open(self, info: RunInfo, *, cursor: int, is_allowed: bool) -> None:
        """Begin a run.

        Args:
            info: The run.
            cursor: Where this job begins.
            is_allowed: Whether steps may be trained without a selection.

        Raises:
            ConfigError: they may, though selections depend on those before them; or a checkpoint says that they are,
                and there is no store to take their rows from.
        """
        self._info = info
        if self.covers(cursor) and self._store is None:
            raise ConfigError(
                f"run {info.name!r}: the checkpoint says that steps {cursor} to {self.end - 1} are trained without a "
                "selection, on rows of the store: set client.payload to 'indices', and data.store, until then"
            )
        if is_allowed and info.selection.keeps_history:
            raise ConfigError(
                f"run {info.name!r}: client.on_unavailable is sample, which leaves a gap in selections, and "
                f"selection.preset {info.selection.preset!r} makes each depend on those before it: set "
                "client.on_unavailable to wait, or choose a selection that keeps no history"
            )

    def covers(self, step: int) -> bool:
        """Whether a step, at or past the cursor, is a fallback step."""
        return step < self.end

    def extend(self, first: int, end: int) -> dict[int, bytes]:
        """Let the steps from `first` to before `end` be fallback steps, and give the hashes of their rows."""
        steps = range(max(first, self.end), end)
        self.end = max(self.end, end)
        return {step: rows_hash(self.received(step).selection) for step in steps}

    def received(self, step: int) -> Received:
        """The fallback selection of a step."""
        assert self._info is not None
        assert self._store is not None
        now = time.time_ns()
        selection = fallback_selection(self._info, self._store, step)
        return Received(selection, PhaseTimes(), num_bytes=0, arrived_unix_ns=now)


def end_without(timing: Timing, versions: Collection[int]) -> int:
    """The first step after all that would use any of these weights versions; 0 where none does."""
    return max((timing.steps_using(version).stop for version in versions if timing.steps_using(version)), default=0)
