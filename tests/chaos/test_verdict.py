"""The soak's verdict is worth something: it finds a step that was lost, repeated or different, and a changed file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.faults import KINDS
from tests.chaos.judge import Told, selection_differences, step_differences, weights_differences
from tests.chaos.report import Line, Struck, measure
from tests.chaos.schedule import Fault, make_schedule
from tests.chaos.soak import soak

NUM_STEPS = 6


def row(rank: int, step: int, **changes: Any) -> dict[str, Any]:
    plain = {"step": step, "weights_version": max(0, step - 1), "large_batch_size": 12, "rows": [rank, 10 + step]}
    plain |= {
        "weights": [1.0, 1.0],
        "gains": [0.5, 0.25],
        "loss": 1 / (1 + step),
        "num_tokens": 40,
        "learning_rate": 0.1,
    }
    return plain | changes


def told(number: int, first: int, last: int) -> Told:
    return Told(number, first, tuple([row(rank, step) for step in range(first, last)] for rank in (0, 1)))


def changed(attempt: Told, rank: int, rows: list[dict[str, Any]]) -> Told:
    return dataclasses.replace(
        attempt, by_rank=tuple(rows if r == rank else old for r, old in enumerate(attempt.by_rank))
    )


CALM = told(0, 0, NUM_STEPS)
GOOD = [told(0, 0, 4), told(1, 2, 3), told(2, 2, NUM_STEPS)]


def test_steps_trained_again_alike_are_the_same_run() -> None:
    assert step_differences(CALM, GOOD, num_steps=NUM_STEPS) == []


@pytest.mark.parametrize(
    ("attempt", "rows", "word"),
    [
        (0, [row(1, 0), row(1, 1), row(1, 3)], "lost"),
        (0, [row(1, 0), row(1, 1), row(1, 1), row(1, 2)], "repeated"),
        (0, [row(1, 1), row(1, 0)], "order"),
        (2, [row(1, 2), row(1, 3), row(1, 4)], "never trained"),
        (0, [row(1, 0)], "nobody trained"),
        (1, [row(1, 2, rows=[1, 11])], "rows"),
        (1, [row(1, 2, rows=[12, 1])], "rows"),
        (1, [row(1, 2, loss=0.3333)], "loss"),
        (1, [row(1, 2, weights=[1.0, 1.5])], "weights"),
        (1, [row(1, 2, weights_version=2)], "weights_version"),
    ],
)  # fmt: skip
def test_whatever_a_rank_trained_otherwise_is_named(attempt: int, rows: list[dict[str, Any]], word: str) -> None:
    attempts = [changed(each, 1, rows) if number == attempt else each for number, each in enumerate(GOOD)]
    found = step_differences(CALM, attempts, num_steps=NUM_STEPS)
    assert found
    assert any(word in line and "rank 1" in line for line in found), found


def test_journals_and_weights_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    table = pa.table({"step": [0, 0, 1], "index": [4, 5, 6], "weight": pa.array([1.0, 1.0, 2.0], pa.float32())})
    a, b = tmp_path / "a", tmp_path / "b"
    pq.write_table(table, a)
    pq.write_table(table, b)
    assert selection_differences(a, b) == []
    pq.write_table(table.set_column(2, "weight", pa.array([1.0, 1.0, 2.0000002], pa.float32())), b)
    assert selection_differences(a, b) == ["the journals differ in the selections of steps [1]"]
    pq.write_table(table.slice(0, 2), b)
    assert len(selection_differences(a, b)) == 1
    a.write_bytes(b"weights")
    b.write_bytes(b"weights")
    assert weights_differences(a, b) == []
    b.write_bytes(b"weighty")
    assert len(weights_differences(a, b)) == 1
    assert len(weights_differences(a, tmp_path / "none")) == 1


def test_a_schedule_has_every_kind_alike_and_is_its_seeds_alone() -> None:
    options: dict[str, Any] = {"count": 50, "num_steps": 320, "num_ranks": 2, "most_seconds": 3.0}
    schedule = make_schedule(list(KINDS), seed=0, **options)
    assert schedule == make_schedule(list(KINDS), seed=0, **options) != make_schedule(list(KINDS), seed=1, **options)
    counts = Counter(fault.kind for fault in schedule)
    assert len(counts) == len(KINDS) >= 8
    assert max(counts.values()) - min(counts.values()) <= 1
    steps = [fault.at_step for fault in schedule]
    assert steps == sorted(steps)
    assert steps[0] >= 1
    assert steps[-1] < 310


def test_standing_still_is_the_longest_gap_that_a_fault_falls_into() -> None:
    def struck(began_s: float, ended_s: float) -> Struck:
        return Struck(
            Fault(0, 2, "server killed", 1.0, 0, True), *(int(at * 1e9) for at in (began_s, ended_s, ended_s)), 2
        )

    seconds = [1.0, 2.0, 2.5, 9.5, 10.0]
    first = Line(0, 0, [int(at * 1e9) for at in seconds])
    again = Line(int(10.5e9), 3, [int(20e9), int(21e9)])
    found = measure([struck(2.2, 8.0), struck(10.2, 10.4)], [first, again])
    assert [each.stood_still_s for each in found] == [7.0, 10.0]
    assert [each.repeated_steps for each in found] == [0, 0]
    (killed,) = measure([struck(10.2, 10.6)], [first, again])
    assert killed.repeated_steps == 2


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_short_soak_is_the_undisturbed_run(tmp_path: Path) -> None:
    from rich.console import Console

    differences = soak(
        tmp_path / "soak", seed=3, num_faults=len(KINDS) // 2, num_steps=60, minutes=10, console=Console(stderr=True)
    )
    assert differences == []
