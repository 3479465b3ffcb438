"""Whether a run that was disturbed is the run that wasn't: selections, every step of every rank, final weights.

Two folders are compared, each with the journal's export and with what every attempt of the job has written of its
steps. An attempt trains on from a checkpoint, so a step may have been trained several times: each time alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.chaos.job import Attempt

# What a rank tells of a step that depends on nothing but the run.
SAME = (
    "weights_version",
    "large_batch_size",
    "rows",
    "weights",
    "gains",
    "loss",
    "num_tokens",
    "learning_rate",
)


@dataclass(frozen=True)
class Told:
    """An attempt's steps by rank, as read once."""

    number: int
    first_step: int
    by_rank: tuple[list[dict[str, Any]], ...]

    @classmethod
    def of(cls, attempt: Attempt, *, ranks: int) -> Told:
        """Read an attempt's files."""
        return cls(attempt.number, attempt.first_step, tuple(attempt.rows(rank) for rank in range(ranks)))


def step_differences(expected: Told, attempts: Sequence[Told], *, num_steps: int) -> list[str]:
    """What is wrong with what the ranks trained, in words; nothing where every step is the undisturbed run's.

    Args:
        expected: The undisturbed run's only attempt.
        attempts: The disturbed run's, in the order they began.
        num_steps: Of the run.
    """
    found: list[str] = []
    for rank, truth in enumerate(expected.by_rank):
        if [row["step"] for row in truth] != list(range(num_steps)):
            found.append(f"rank {rank} of the undisturbed run didn't train the steps 0 to {num_steps - 1} in order")
            continue
        trained: set[int] = set()
        for attempt in attempts:
            rows = attempt.by_rank[rank]
            steps = [row["step"] for row in rows]
            if steps != list(range(attempt.first_step, attempt.first_step + len(steps))):
                found.append(
                    f"rank {rank}, attempt {attempt.number}: began at step {attempt.first_step}, trained {steps}: "
                    "a step is lost, repeated or out of order"
                )
            missing = sorted(set(range(attempt.first_step)) - trained)
            if missing:
                found.append(f"rank {rank}, attempt {attempt.number}: goes on past steps {missing} that nobody trained")
            trained.update(steps)
            for row in rows:
                if 0 <= row["step"] < num_steps:
                    found += _row_differences(truth[row["step"]], row, rank=rank, attempt=attempt.number)
        if missing := sorted(set(range(num_steps)) - trained):
            found.append(f"rank {rank}: steps {missing} were never trained")
    return found


def _row_differences(truth: dict[str, Any], row: dict[str, Any], *, rank: int, attempt: int) -> list[str]:
    return [
        f"rank {rank}, attempt {attempt}, step {row['step']}: {key} is {row[key]}, undisturbed {truth[key]}"
        for key in SAME
        if row[key] != truth[key]
    ]


def selection_differences(expected: Path, found: Path) -> list[str]:
    """What differs between two exports of a journal, in words."""
    left, right = pq.read_table(expected), pq.read_table(found)
    if left.equals(right):
        return []
    steps = [table.column("step").to_pylist() for table in (left, right)]
    if len(steps[0]) != len(steps[1]):
        return [f"the undisturbed journal holds {len(steps[0])} picked rows, the disturbed one {len(steps[1])}"]
    different = {step for column in left.column_names for step in _steps_that_differ(left, right, column)}
    return [f"the journals differ in the selections of steps {sorted(different)}"]


def _steps_that_differ(left: Any, right: Any, column: str) -> set[int]:
    pairs = zip(left.column("step").to_pylist(), left.column(column), right.column(column), strict=True)
    return {step for step, a, b in pairs if not a.equals(b)}


def weights_differences(expected: Path, found: Path) -> list[str]:
    """What differs between the files that two runs ended with, in words: they are the same bytes or they aren't."""
    if not found.exists():
        return [f"the disturbed run has no final weights {found.name}"]
    if expected.read_bytes() == found.read_bytes():
        return []
    return [f"the final weights {found.name} differ from the undisturbed run's"]
