"""The processes of a training job: torchrun gives every rank a session of its own, so that no group holds them all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """All processes that `pid` and those it started have started, that are there now."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, thread.read_text().split()):
                found += [child, *descendants(child)]
    return found


def rank_of(pid: int) -> int | None:
    """The rank that torchrun gave a process; None of one that is no rank, or is gone."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[len(b"RANK=") :])
    return None


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; one that is gone is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
