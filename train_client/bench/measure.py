"""Lines of steps → what an arm costs: plain arithmetic on what trainers and selectors wrote down."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import DataError

# Of a selection, in the order in which they follow each other where nothing overlaps.
PHASES = ("receive", "load", "draw", "score", "pick", "journal", "send")
_ON_THE_SERVER = ("load", "draw", "score", "pick", "journal")
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Step:
    """One step that counts. Seconds unless a name says otherwise.

    Attributes:
        number: Its number in the run.
        seconds: From its beginning to the next one's.
        waited: How long the trainer waited for its selection.
        trained: Forward and backward.
        optimizer: The optimizer's step.
        pushed: What a push, or selection in the trainer, cost the training thread.
        phases: Of its selection, by name of `PHASES`.
        upload: From its beginning to the selector's, where the trainer waits for both.
        wire_bytes: Of its selection.
        selector_peak_bytes: What the selector's accelerator has held at most so far; 0 on a processor.
    """

    number: int
    seconds: float
    waited: float
    trained: float
    optimizer: float
    pushed: float
    phases: Mapping[str, float]
    upload: float
    wire_bytes: int
    selector_peak_bytes: int


@dataclass(frozen=True)
class Estimate:
    """The median of some rounds, and an interval for the median of all that could have been.

    Attributes:
        median: Of the rounds.
        low: The interval's lower end, one of the rounds.
        high: Its upper end, another.
        confidence: How likely the interval holds the true median, whatever the distribution; at least 0.9 from five
            rounds on.
    """

    median: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def clean_steps(rows: Sequence[Mapping[str, Any]], window: range, pauses: Sequence[tuple[int, int]]) -> list[Step]:
    """The steps of a window that no pause cut into, and whose selection none cut into either.

    Args:
        rows: A line for each step from step 0 on, one past the window at least.
        window: Which steps.
        pauses: From when to when the arm stood still, by `time.time_ns`.

    Raises:
        DataError: no step is left.
    """
    found = []
    for number in window:
        row = rows[number]
        begin, end = row["wait_started_ns"], rows[number + 1]["wait_started_ns"]
        selecting = row["selector"]["started_unix_ns"], row["arrived_unix_ns"]
        if not any(_overlap(pause, (begin, end)) or _overlap(pause, selecting) for pause in pauses):
            found.append(_step(row, seconds=(end - begin) / 1e9))
    if not found:
        raise DataError(f"pauses cut into all of the steps {window.start} to {window.stop - 1}: measure more per round")
    return found


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _step(row: Mapping[str, Any], *, seconds: float) -> Step:
    times = row["selector"]
    phases = {phase: times[f"{phase}_seconds"] for phase in ("receive", *_ON_THE_SERVER)}
    made = times["started_unix_ns"] / 1e9 + sum(phases[phase] for phase in _ON_THE_SERVER)
    return Step(
        number=row["step"],
        seconds=seconds,
        waited=row["wait_seconds"],
        trained=row["train_seconds"],
        optimizer=row["optimizer_seconds"],
        pushed=row["push_seconds"],
        phases=phases | {"send": max(0.0, row["arrived_unix_ns"] / 1e9 - made)},
        upload=max(0.0, (times["started_unix_ns"] - row["wait_started_ns"]) / 1e9),
        wire_bytes=row["wire_bytes"],
        selector_peak_bytes=times["peak_bytes"],
    )


def mean_of(steps: Sequence[Step], name: str) -> float:
    """The mean of an attribute, or of a phase, over one round's steps: throughput is a matter of means."""
    return statistics.fmean(float(step.phases[name] if name in PHASES else getattr(step, name)) for step in steps)


def selection_seconds(steps: Sequence[Step]) -> float:
    """What a selection takes, its share of receiving and loading weights included: the mean of one round's steps."""
    return sum(mean_of(steps, phase) for phase in PHASES)


def estimate(values: Sequence[float]) -> Estimate:
    """The median and the shortest interval of order statistics that holds the true one with 90 % confidence.

    Where there are too few rounds for that, the interval is that of all of them. Rounds are taken to be independent;
    nothing else is assumed of them.
    """
    ordered, count = sorted(values), len(values)
    best = (0, _coverage(count, 0))
    for left_out in range(1, (count + 1) // 2):
        if (confidence := _coverage(count, left_out)) < CONFIDENCE:
            break
        best = (left_out, confidence)
    left_out, confidence = best
    return Estimate(statistics.median(ordered), ordered[left_out], ordered[count - 1 - left_out], confidence)


def _coverage(count: int, left_out: int) -> float:
    """How likely the median lies between the order statistics that leave out so many at either end."""
    outside = sum(math.comb(count, k) for k in range(left_out + 1)) / 2**count
    return float(max(0.0, 1 - 2 * outside))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
