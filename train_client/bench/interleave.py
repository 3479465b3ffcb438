"""In which order arms run, so that what drifts on a machine drifts for all of them.

All arms are started once and then take turns: each trains the same few steps, and stands still while the others do.
A round is one turn of each, and what is compared is each round's ratio. Where the arms don't fit in memory together,
they are started anew for every turn.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.errors import SubbatchError
from train_client.bench.job import Job
from train_client.bench.measure import Step, clean_steps

_POLL_S = 0.02
# Jobs that start at a time: as many as there are cores in the smallest place this runs.
_AT_A_TIME = 2


@dataclass(frozen=True)
class Schedule:
    """How many steps are trained, and which of them count.

    Attributes:
        rounds: How often every arm has its turn.
        steps: Steps of a turn that count.
        restart: Whether arms are started anew for every turn.
        warm_up: Steps before the first turn.
        lead_in: Steps at the beginning of a turn that don't count: one that the pause cut into, and two to get going.
        spare: Steps that are never reached, so that no run comes to its end.
    """

    rounds: int
    steps: int
    restart: bool = False
    warm_up: int = 2
    lead_in: int = 3
    spare: int = 8

    def window(self, number: int) -> range:
        """The steps that count of a round, the same for all arms."""
        turn = 0 if self.restart else number
        first = self.warm_up + turn * (self.lead_in + self.steps) + self.lead_in
        return range(first, first + self.steps)

    @property
    def num_steps(self) -> int:
        """Steps of each run."""
        return self.window(self.rounds - 1).stop + self.spare


@dataclass
class Turns:
    """What all turns of one arm left.

    Attributes:
        steps: Steps that count, round by round.
        rows: Lines of every step that was trained, of the last start.
    """

    steps: list[list[Step]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def take_turns(
    make_job: Callable[[str, int], Job], arms: Sequence[str], schedule: Schedule, *, told: Callable[[str], None]
) -> dict[str, Turns]:
    """Run every arm for all rounds.

    Args:
        make_job: A new job of an arm; its second argument numbers the starts.
        arms: Names, in the order of the first round; every other round goes backwards.
        schedule: How many steps.
        told: Is told what happens next.

    Raises:
        SubbatchError: a process failed.
    """
    turns = {name: Turns() for name in arms}
    with contextlib.ExitStack() as stack:
        alive: dict[str, Job] = {}
        if not schedule.restart:
            told(f"starting {len(arms)} arms")
            alive = {name: stack.enter_context(make_job(name, 0)) for name in arms}
            run_together(list(alive.values()), lambda job: _is_ready(job, schedule.warm_up))
        for number in range(schedule.rounds):
            order = arms if number % 2 == 0 else arms[::-1]
            for name in order:
                told(f"round {number + 1} of {schedule.rounds}: {name}")
                with _turn_of(alive, name, make_job, number, warm_up=schedule.warm_up) as job:
                    window = schedule.window(number)
                    job.advance(window.stop + 1)
                    job.pause()
                    turns[name].rows = job.rows()
                    turns[name].steps.append(clean_steps(turns[name].rows, window, job.pauses))
    return turns


@contextlib.contextmanager
def _turn_of(
    alive: Mapping[str, Job], name: str, make_job: Callable[[str, int], Job], number: int, *, warm_up: int
) -> Iterator[Job]:
    """An arm's job, at work on the cores of its sides."""
    if name in alive:
        alive[name].resume()
        yield alive[name]
        return
    with make_job(name, number) as job:
        job.start()
        job.advance(warm_up)
        job.pin()
        yield job


def run_together(jobs: Sequence[Job], is_done: Callable[[Job], bool]) -> None:
    """Start jobs, some at a time, and look at each again and again until it is done.

    Args:
        jobs: Not started yet; whoever made them ends them.
        is_done: Says so of a job, and sees to it that it takes no more time then.

    Raises:
        SubbatchError: a process failed.
    """
    waiting, started = list(jobs), list[Job]()
    while waiting or started:
        while waiting and len(started) < _AT_A_TIME:
            started.append(waiting.pop(0))
            started[-1].start()
        started = [job for job in started if not is_done(job)]
        time.sleep(_POLL_S)


def _is_ready(job: Job, steps: int) -> bool:
    """Whether a job has trained so many steps; it is then on its cores and stands still."""
    if job.steps_done < steps:
        if not job.check():
            raise SubbatchError(f"{job.arm.name} ended after {job.steps_done} steps, {steps} were asked for")
        return False
    job.pin()
    job.pause()
    return True
