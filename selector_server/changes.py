"""How the streams of a run hear of a change: all are woken at once, each a single time however much has changed."""

from __future__ import annotations

import asyncio


class Signal:
    """A count of changes that can be waited for, on one event loop. Whoever is slow misses counts, not the change."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def fire(self) -> None:
        """Something has changed."""
        self.count += 1
        event, self._next = self._next, asyncio.Event()
        event.set()

    async def past(self, count: int) -> None:
        """Wait until there have been more changes than `count`."""
        while self.count <= count:
            await self._next.wait()
