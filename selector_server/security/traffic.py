"""How much is under way: calls, streams and pushes at a time, and whether a push gets on.

What is full now may have room soon, so a caller is told to come again, and ours does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from shared.errors import TooSlowError, UnavailableError
from shared.limits_config import LimitsConfig

T = TypeVar("T")


class Traffic:
    """Counts of one server; used on its event loop alone."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._calls = 0
        self._streams: Counter[str] = Counter()
        self._pushes: Counter[str] = Counter()
        self._push_bytes = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """While a call is under way.

        Raises:
            UnavailableError: the server has as many as it takes.
        """
        if self._calls >= self._limits.calls:
            raise UnavailableError(
                f"{self._calls} calls are under way, as many as server.limits.calls lets in: try again"
            )
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def stream(self, run: str) -> AbstractContextManager[None]:
        """While a stream about a run is open.

        Raises:
            UnavailableError: the run has as many as it may have.
        """
        return self._counted(self._streams, run, self._limits.streams_per_run, "streams", "streams_per_run")

    def push(self, run: str) -> AbstractContextManager[None]:
        """While weights of a run arrive.

        Raises:
            UnavailableError: the run has as many as it may have.
        """
        return self._counted(self._pushes, run, self._limits.pushes_per_run, "pushes", "pushes_per_run")

    @contextmanager
    def _counted(self, counts: Counter[str], run: str, limit: int, what: str, key: str) -> Iterator[None]:
        if counts[run] >= limit:
            raise UnavailableError(
                f"run {run!r} has {counts[run]} {what} under way, as many as server.limits.{key} lets in: try again "
                "when one has ended"
            )
        counts[run] += 1
        try:
            yield
        finally:
            counts[run] -= 1
            if not counts[run]:
                del counts[run]

    @contextmanager
    def held(self) -> Iterator[HeldBytes]:
        """Account for the bytes of one push until it is done with."""
        held = HeldBytes(self)
        try:
            yield held
        finally:
            self._push_bytes -= held.num_bytes

    def take(self, num_bytes: int) -> None:
        """Account for bytes that have arrived.

        Raises:
            UnavailableError: more than all pushes together may hold.
        """
        if self._push_bytes + num_bytes > self._limits.push_bytes:
            raise UnavailableError(
                f"pushes under way hold {self._push_bytes} bytes, server.limits.push_bytes is "
                f"{self._limits.push_bytes}: try again when one has ended"
            )
        self._push_bytes += num_bytes


class HeldBytes:
    """The bytes of one push so far."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Account for a chunk.

        Raises:
            UnavailableError: more than all pushes together may hold.
        """
        self._traffic.take(num_bytes)
        self.num_bytes += num_bytes


async def steady(messages: AsyncIterator[T], limits: LimitsConfig, *, num_bytes: int) -> AsyncGenerator[T, None]:
    """A push's messages as long as they keep coming.

    Args:
        messages: What arrives.
        limits: How long nothing may come, and how slow all of it may be.
        num_bytes: What was announced; 0 before anything was.

    Raises:
        TooSlowError: nothing came for too long, or too little on the whole.
    """
    seconds = limits.push_stall_s + num_bytes / limits.push_bytes_per_s if num_bytes else math.inf
    ends = time.monotonic() + seconds
    while True:
        patience = min(limits.push_stall_s, ends - time.monotonic())
        try:
            message = await asyncio.wait_for(_next(messages), timeout=max(patience, 0))
        except asyncio.TimeoutError:
            if patience < limits.push_stall_s:
                raise TooSlowError(
                    f"a push of {num_bytes} bytes is slower than server.limits.push_bytes_per_s "
                    f"{limits.push_bytes_per_s}: lower the limit where the network is that slow"
                ) from None
            raise TooSlowError(
                f"a push sent nothing for {limits.push_stall_s:g} s (server.limits.push_stall_s)"
            ) from None
        if message is None:
            return
        yield message


async def _next(messages: AsyncIterator[T]) -> T | None:
    async for message in messages:
        return message
    return None
