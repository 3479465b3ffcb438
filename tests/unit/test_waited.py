"""Why a rank stood still, told by hand for waits that begin and end in different phases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shared.records import PhaseTimes, Selection
from train_client.metrics import CAUSES
from train_client.plugin import StepReport
from train_client.waited import wait_causes

SECOND = 10**9
# Loads from 100 to 101, draws to 101.5, scores to 105.5, picks to 106, and is durable at 106.25.
TIMES = PhaseTimes(100 * SECOND, 1.0, 0.5, 4.0, 0.5, 0.25)


def report(began: float, seconds: float, *, fallback: bool = False) -> StepReport:
    none = np.empty(0, dtype=np.int64)
    selection = Selection("run", 1, 0, 8, none, none, none, none, none, fallback=fallback)
    waited = StepReport(selection, [], 0.0, 0, 0, 0, int(began * SECOND), seconds, 0.0, 0.0, 0.0, 0.0, TIMES)
    return dataclasses.replace(waited, arrived_unix_ns=int((began + seconds) * SECOND))


@pytest.mark.parametrize(
    ("began", "seconds", "expected"),
    [
        (98.0, 8.5, {"start": 2, "load": 1, "draw": 0.5, "score": 4, "pick": 0.5, "journal": 0.25, "delivery": 0.25}),
        (103.0, 3.5, {"score": 2.5, "pick": 0.5, "journal": 0.25, "delivery": 0.25}),
        (106.5, 2.0, {"delivery": 2}),
        (98.0, 1.0, {"start": 1}),
        (90.0, 0.0, {}),
    ],
)
def test_a_wait_is_laid_over_what_the_selector_did(began: float, seconds: float, expected: dict[str, float]) -> None:
    causes = wait_causes(report(began, seconds))
    assert {cause: value for cause, value in causes.items() if value} == pytest.approx(expected)
    assert sum(causes.values()) == pytest.approx(seconds)
    assert set(causes) <= set(CAUSES)


def test_a_step_without_a_selection_waited_for_a_server_that_was_away() -> None:
    assert wait_causes(report(98.0, 5.0, fallback=True)) == {"away": 5.0}
