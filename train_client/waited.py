"""What a rank waited for when it stood still for a selection, by the selector's own account of that selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train_client.plugin import StepReport


def wait_causes(report: StepReport) -> dict[str, float]:
    """Seconds by cause, `metrics.CAUSES`; they add up to the step's wait.

    The selector says when it began the selection and how long each phase took; the wait is laid over that. So clocks of
    two machines that differ by a tenth of a second may name the neighbour of a cause that took less than that.

    Args:
        report: Of the step.
    """
    if report.selection.fallback:
        return {"away": report.wait_seconds}
    times = report.selector
    began = report.wait_started_ns
    ends = began + int(report.wait_seconds * 1e9)
    phases = {
        "load": times.load_seconds,
        "draw": times.draw_seconds,
        "score": times.score_seconds,
        "pick": times.pick_seconds,
        "journal": times.journal_seconds,
    }
    causes = {"start": _overlap(began, ends, began, times.started_unix_ns)}
    at = times.started_unix_ns
    for phase, seconds in phases.items():
        causes[phase] = _overlap(began, ends, at, at + int(seconds * 1e9))
        at += int(seconds * 1e9)
    causes["delivery"] = max(0.0, report.wait_seconds - sum(causes.values()))
    return causes


def _overlap(began: int, ends: int, first: int, last: int) -> float:
    """Seconds that two spans of nanoseconds share."""
    return max(0, min(ends, last) - max(began, first)) / 1e9
