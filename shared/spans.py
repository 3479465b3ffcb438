"""What a step's trace is made of: spans whose times are known when they are over, and the ids that all processes share.

A trace is one step of one run. Its id follows from the run's name and the step, so server and ranks write to the same
trace without a word about it on the wire, and whoever looks for a step computes its id. A step that is trained again
after a rewind is in the same trace once more, beside what it was before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

_PHASES = ("load", "draw", "score", "pick", "journal")


@dataclass(frozen=True)
class Span:
    """Something that took its time. Times are those of `time.time_ns`."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Traces(Protocol):
    """Where spans go."""

    def record(self, run: str, step: int, spans: list[Span], *, whole: Span | None = None) -> None:
        """Note what happened in a step.

        Args:
            run: The run's name.
            step: The step.
            spans: What happened.
            whole: The step itself, which all spans of its trace are children of; one process says what it was.
        """

    def flush(self) -> None:
        """Give away what hasn't been given yet."""

    def close(self) -> None:
        """The same, and take no more."""


class Times(Protocol):
    """What is known of the times of a selection, as a record or as a message."""

    @property
    def started_unix_ns(self) -> int:
        """When it began, by `time.time_ns`."""

    @property
    def load_seconds(self) -> float:
        """Of this phase."""

    @property
    def draw_seconds(self) -> float:
        """Of this phase."""

    @property
    def score_seconds(self) -> float:
        """Of this phase."""

    @property
    def pick_seconds(self) -> float:
        """Of this phase."""


def trace_ids(run: str, step: int) -> tuple[int, int]:
    """The id of a step's trace, 128 bits, and that of the span of the whole step, 64 bits.

    The first 16 and the next 8 bytes of SHA-256 over "subbatch trace 1", the run's name and the step, with zero bytes
    between them.
    """
    digest = hashlib.sha256(b"\0".join((b"subbatch trace 1", run.encode(), str(step).encode()))).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def selection_spans(times: Times, *, journal_seconds: float) -> list[Span]:
    """The phases of a selection, one after the other; those that took no time are left out.

    Args:
        times: Of the selection.
        journal_seconds: How long making it durable took, which `times` may not know yet.
    """
    spans, at = [], times.started_unix_ns
    for phase in _PHASES:
        seconds = journal_seconds if phase == "journal" else getattr(times, f"{phase}_seconds")
        end = at + int(seconds * 1e9)
        if end > at:
            spans.append(Span(phase, at, end))
        at = end
    return spans
