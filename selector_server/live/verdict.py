"""Who waits for whom, and what to do about it, from what a server has seen of a run: pure arithmetic and words.

A step's training lasts from when its selection was there and the step before was complete on all ranks until it is
complete itself; what lies between the step before and the selection is waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from selector_server.leases import ranks_in_words
from shared.pb.v1 import selector_pb2 as pb

# Waiting up to this share of the time is what two nearly equal times that vary give.
_NOTICEABLE_WAIT = 0.05
# A step that takes so many times as long as usual has stopped, if it has taken at least so many seconds.
_STALLED_STEPS, _STALLED_S = 5.0, 10.0
_FEWEST_STEPS = 3
_NEWEST = 32
_Level = pb.Verdict

_FASTER = (
    "score faster: more scoring processes (torchrun --nproc_per_node G -m selector_server serve), a faster device, "
    "or a smaller selection.large_batch_size; or let selections lag: a higher run.staleness"
)

_Told = tuple[pb.Verdict.Level, str, str]


@dataclass(frozen=True)
class Flow:
    """How the newest steps went, in seconds, means and medians over them.

    Attributes:
        num_steps: How many are known from end to end.
        step_seconds: Mean of a step, waiting included.
        wait_seconds: Mean of waiting.
        selecting_seconds: The part of `wait_seconds` in which the selection waited for was being made.
        selection_seconds: Median, from beginning a selection until it is durable.
        training_seconds: Median of a step without its wait.
    """

    num_steps: int = 0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    selecting_seconds: float = 0.0
    selection_seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def wait_fraction(self) -> float:
        """Share of the time in which all ranks stood still."""
        return self.wait_seconds / self.step_seconds if self.step_seconds else 0.0


def flow(steps: Sequence[pb.StepSeen]) -> Flow:
    """How the newest of these steps went; those whose step before isn't here don't count.

    Args:
        steps: Oldest first.
    """
    known = [
        (before.last_completed_unix_ns, step)
        for before, step in pairwise(steps)
        if before.last_completed_unix_ns and step.last_completed_unix_ns and step.step == before.step + 1
    ][-_NEWEST:]
    if not known:
        return Flow()
    waits = [max(0, step.ready_unix_ns - before) for before, step in known]
    selecting = [
        min(wait, max(0, step.ready_unix_ns - step.times.started_unix_ns))
        for wait, (_, step) in zip(waits, known, strict=True)
    ]
    whole = [step.last_completed_unix_ns - before for before, step in known]
    n = len(known)
    return Flow(
        num_steps=n,
        step_seconds=sum(whole) / n / 1e9,
        wait_seconds=sum(waits) / n / 1e9,
        selecting_seconds=sum(selecting) / n / 1e9,
        selection_seconds=median(step.ready_unix_ns - step.times.started_unix_ns for _, step in known) / 1e9,
        training_seconds=median(total - wait for total, wait in zip(whole, waits, strict=True)) / 1e9,
    )


def verdict(
    status: pb.RunStatus, *, now_unix_ns: int, failure: str, held: str, missing: Sequence[int], is_shared: bool
) -> pb.Verdict:
    """Tell how a run fares.

    Args:
        status: With the detail's steps.
        now_unix_ns: The time.
        failure: The error that stopped the run; empty without one.
        held: Why its next selection can't be made durable; empty where it can.
        missing: Ranks that haven't completed the oldest step that isn't complete.
        is_shared: Whether the server has other open runs to select for.
    """
    detail = status.detail
    seen = flow(detail.steps)
    level, headline, remedy = _told(
        status, seen, now_unix_ns=now_unix_ns, failure=failure, held=held, missing=missing, is_shared=is_shared
    )
    return pb.Verdict(
        level=level,
        headline=headline,
        remedy=remedy,
        wait_fraction=seen.wait_fraction,
        selection_seconds=seen.selection_seconds,
        training_seconds=seen.training_seconds,
        step_seconds=seen.step_seconds,
    )


def _told(
    status: pb.RunStatus,
    seen: Flow,
    *,
    now_unix_ns: int,
    failure: str,
    held: str,
    missing: Sequence[int],
    is_shared: bool,
) -> _Told:
    completed = min(status.completed.values(), default=0)
    if failure:
        return _Level.FAILED, f"An error stopped it: {failure}", "mend the cause, then resume from the last checkpoint"
    if held:
        return _Level.STALLED, f"No room for the next selection: {held}", "free some: selecting then goes on by itself"
    if completed >= status.num_steps:
        return _Level.DONE, f"Trained: all {status.num_steps} steps", ""
    if status.closed:
        return _Level.DONE, f"Closed by its trainer after {completed} of {status.num_steps} steps", ""
    if len(status.gone_ranks) == len(status.completed):
        silent = min(status.silent_seconds.values(), default=0.0)
        return (
            _Level.STALLED,
            f"No trainer is here: every rank has been silent for {silent:.0f} s or longer",
            "start the training job again; it resumes from its last checkpoint",
        )
    stall = _stall(status, seen, now_unix_ns=now_unix_ns, missing=missing)
    if stall:
        return stall
    if seen.num_steps < _FEWEST_STEPS:
        return _Level.STARTING, f"Starting: {completed} of {status.num_steps} steps trained", ""
    if seen.wait_fraction > _NOTICEABLE_WAIT:
        return _starving(status, seen, is_shared=is_shared)
    return _Level.GOOD, _good(status, seen), ""


def _stall(status: pb.RunStatus, seen: Flow, *, now_unix_ns: int, missing: Sequence[int]) -> _Told | None:
    """What is said where nothing has moved for long."""
    newest = max((s.last_completed_unix_ns for s in status.detail.steps), default=0)
    here = [done for rank, done in status.completed.items() if rank not in status.gone_ranks]
    step = min(here)
    ready = next((s.ready_unix_ns for s in status.detail.steps if s.step == step), 0)
    if not newest or seen.num_steps < _FEWEST_STEPS:
        return None
    idle = (now_unix_ns - max(newest, ready)) / 1e9
    if idle < max(_STALLED_S, _STALLED_STEPS * seen.step_seconds):
        return None
    usual = f"usually a step takes {seen.step_seconds:.2f} s"
    if not ready:
        return (
            _Level.STALLED,
            f"Trainers have waited {idle:.0f} s for step {step}; the selector waits for {status.waits_for}; {usual}",
            "see the log of whom it waits for",
        )
    late = [rank for rank in missing if rank not in status.gone_ranks]
    whom = "every rank" if len(late) == len(here) else ranks_in_words(late)
    return (
        _Level.STALLED,
        f"Step {step} has been trained for {idle:.0f} s; {usual}. Not done: {whom}",
        "look at the log and the device of that rank" if len(late) == 1 else "look at the logs of the ranks",
    )


def _starving(status: pb.RunStatus, seen: Flow, *, is_shared: bool) -> _Told:
    share = f"Trainers wait {seen.wait_fraction:.0%} of the time"
    if seen.selecting_seconds >= seen.wait_seconds / 2:
        took = f"a selection takes {seen.selection_seconds:.2f} s, training a step {seen.training_seconds:.2f} s"
        if status.detail.staleness == 0:
            return (
                _Level.WAITING,
                f"{share} for the selector: {took}, and with run.staleness = 0 one follows the other",
                "run.staleness = 1 lets both happen at once",
            )
        return _Level.WAITING, f"{share} for the selector: {took}", _FASTER
    if is_shared:
        return (
            _Level.WAITING,
            f"{share} for the selector, which works for other runs meanwhile",
            "give this run a server of its own, or score faster",
        )
    return (
        _Level.WAITING,
        f"{share} for a selection that begins late, since the weights that it needs arrive late",
        "look at the pushes' time and at the network between trainer and server; a higher run.staleness hides it",
    )


def _good(status: pb.RunStatus, seen: Flow) -> str:
    here = [done for rank, done in status.completed.items() if rank not in status.gone_ranks]
    ahead = status.next_step - min(here)
    told = f"Trainers wait {seen.wait_fraction:.1%} of the time: selections are there before they are wanted"
    told = told if ahead else f"Trainers wait {seen.wait_fraction:.1%} of the time"
    if status.gone_ranks:
        return f"{told}; {ranks_in_words(sorted(status.gone_ranks))} gone, the others go on"
    return told
