"""Where the time of the calling thread goes, by Linux's own account: computing, queueing for a processor, blocked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True)
class ThreadTime:
    """Seconds of one thread, since some moment or between two.

    Attributes:
        wall: What a clock says.
        computing: On a processor.
        queueing: Ready to compute while no processor was free; Linux calls it run-queue wait.
    """

    wall: float
    computing: float
    queueing: float

    @property
    def blocked(self) -> float:
        """Neither: asleep until something comes, which in a loop that reads nothing is the interpreter lock."""
        return self.wall - self.computing - self.queueing

    def __sub__(self, earlier: ThreadTime) -> ThreadTime:
        return ThreadTime(
            self.wall - earlier.wall, self.computing - earlier.computing, self.queueing - earlier.queueing
        )


def thread_time() -> ThreadTime:
    """The calling thread's time so far.

    Raises:
        ConfigError: no scheduler statistics: not Linux, or a kernel without them.
    """
    try:
        text = _SCHEDSTAT.read_text()
    except OSError as error:
        raise ConfigError(
            f"this system has no scheduler statistics ({_SCHEDSTAT}: {error.strerror}): run it on Linux"
        ) from None
    _, queueing, _ = (int(field) for field in text.split())
    return ThreadTime(time.monotonic(), time.thread_time(), queueing / 1e9)
