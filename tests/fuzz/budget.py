"""How long a fuzzer runs, and what it watches for: crashes, hangs, and memory out of proportion.

In `make test` each gets the same few inputs every time. `make fuzz FUZZ_MINUTES=10` gives each as many minutes of new
ones; FUZZ_SEED repeats a run. Hypothesis makes the inputs, shrinks what fails, and keeps it in `.hypothesis` so that
the next run begins with it. Coverage doesn't guide it: it would see our lines alone, and bytes are taken apart in C++.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy, tuples

logger = logging.getLogger(__name__)

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
# Inputs are a few hundred kilobytes at most.
MOST_MEMORY = 96 << 20

_PER_ROUND = 1000
_HANG_S = 60
_CLEAR_PEAK = Path("/proc/self/clear_refs")
_COMMON = settings(deadline=None, suppress_health_check=list(HealthCheck))
_QUICK = settings(_COMMON, derandomize=True, database=None)
_LONG = settings(_COMMON, max_examples=_PER_ROUND, deadline=timedelta(seconds=10))


def fuzz(check: Callable[..., None], *inputs: SearchStrategy[Any], quick: int) -> None:
    """Call `check` with inputs until the time is up; without a time, with `quick` of them that never change.

    Raises:
        Whatever `check` does, for the simplest input that makes it do so.
    """

    def watched(arguments: tuple[Any, ...]) -> None:
        with _watch():
            check(*arguments)

    if not MINUTES:
        settings(_QUICK, max_examples=quick)(given(tuples(*inputs))(watched))()
        return
    began, rounds = time.monotonic(), 0
    while time.monotonic() < began + 60 * MINUTES:
        seed(SEED + rounds)(_LONG(given(tuples(*inputs))(watched)))()
        rounds += 1
    logger.info("%s: %d inputs in %.1f minutes", check.__qualname__, rounds * _PER_ROUND, MINUTES)


@contextmanager
def _watch() -> Iterator[None]:
    """End the process with every thread's stack where an input hangs; fail where it takes too much memory."""
    if MINUTES:
        faulthandler.dump_traceback_later(_HANG_S, exit=True)
    before = _start()
    try:
        yield
    finally:
        if MINUTES:
            faulthandler.cancel_dump_traceback_later()
    taken = _resident("VmHWM") - before if before else 0
    assert taken < MOST_MEMORY, f"one input took {taken / 2**20:.0f} MiB"


def _start() -> int:
    """Bytes that the process holds, from where its peak is counted; 0 where the system doesn't tell."""
    if not _CLEAR_PEAK.exists():
        return 0
    _CLEAR_PEAK.write_text("5")
    return _resident("VmRSS")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
