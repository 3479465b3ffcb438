"""Which of several runs goes first, and what that is worth: a small simulation of trainers and one selector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from selector_server.deadline import Pace


def test_a_step_takes_what_is_left_of_the_time_between_reports_without_waiting() -> None:
    pace = Pace(completed=3, since=100.0)
    pace = pace.after(4, now=108.0, there_since=105.0)  # waited for 5 s, trained for 3
    assert pace == Pace(completed=4, since=108.0, step_seconds=3.0)
    assert pace.after(6, now=118.0, there_since=90.0).step_seconds == pytest.approx(0.3 * 5 + 0.7 * 3)
    assert pace.after(4, now=120.0, there_since=0.0) == pace
    assert pace.after(2, now=120.0, there_since=0.0) == pace


def test_the_deadline_is_when_the_steps_before_are_done_and_stays_in_the_past_for_who_waits() -> None:
    pace = Pace(completed=4, since=108.0, step_seconds=3.0)
    assert [pace.deadline(step, there_since=90.0) for step in (4, 5, 7)] == [108.0, 111.0, 117.0]
    assert [pace.deadline(step, there_since=120.0) for step in (4, 5, 7)] == [108.0, 123.0, 129.0]
    assert [Pace(completed=0, since=7.0).deadline(step, there_since=0.0) for step in (0, 1)] == [7.0, math.inf]


@dataclass
class Trainer:
    """Trains step t for `seconds` once its selection is there; selections may be `lookahead` ahead."""

    seconds: float
    lookahead: int = 1
    pace: Pace = field(default_factory=lambda: Pace(0, 0.0))
    there: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)

    def advance(self, now: float) -> None:
        """Report the steps that are done by `now`."""
        while len(self.done) < len(self.there):
            started = max(self.done[-1] if self.done else 0.0, self.there[len(self.done)])
            if started + self.seconds > now:
                return
            self.done.append(started + self.seconds)
            there = self.there[len(self.done) - 1]
            self.pace = self.pace.after(len(self.done), now=self.done[-1], there_since=there)

    @property
    def deadline(self) -> float:
        trains = self.there[self.pace.completed] if self.pace.completed < len(self.there) else 0.0
        return self.pace.deadline(len(self.there), there_since=trains)

    @property
    def ready(self) -> bool:
        return len(self.there) <= len(self.done) + self.lookahead

    def waited(self, since_step: int) -> list[float]:
        """How long each step's trainer had waited for its selection."""
        steps = range(since_step, len(self.there))
        return [max(0.0, self.there[t] - self.done[t - 1]) for t in steps if t - 1 < len(self.done)]


Choose = Callable[[Sequence[Trainer], int], Trainer]


def most_urgent(ready: Sequence[Trainer], _turn: int) -> Trainer:
    return min(ready, key=lambda trainer: trainer.deadline)


def in_turn(ready: Sequence[Trainer], turn: int) -> Trainer:
    return ready[turn % len(ready)]


def simulate(trainers: Sequence[Trainer], choose: Choose, *, select_seconds: float, until: float) -> None:
    now, turn = 0.0, 0
    while now < until:
        for trainer in trainers:
            trainer.advance(now)
        ready = [trainer for trainer in trainers if trainer.ready]
        if ready:
            turn += 1
            chosen = choose(ready, turn)
            now += select_seconds
            chosen.there.append(now)
        else:
            now += 0.01


def test_a_fast_run_never_waits_for_slow_ones_where_taking_turns_would_let_it() -> None:
    # Of the selector's time, the fast run takes 1 / 1.6 and three slow ones 3 / 12 together.
    waited = {}
    for choose in (most_urgent, in_turn):
        trainers = [Trainer(1.6), *(Trainer(12.0) for _ in range(3))]
        simulate(trainers, choose, select_seconds=1.0, until=600.0)
        waited[choose] = sum(trainers[0].waited(10))
        assert all(max(slow.waited(10)) == 0 for slow in trainers[1:])
    assert waited[most_urgent] < waited[in_turn] / 2


def test_a_run_that_was_just_served_goes_behind_those_that_wait() -> None:
    trainers = [Trainer(1.0) for _ in range(8)]
    simulate(trainers, most_urgent, select_seconds=10.0, until=4000.0)
    steps = [len(trainer.done) for trainer in trainers]
    assert max(steps) - min(steps) <= 2
    assert max(wait for trainer in trainers for wait in trainer.waited(5)) <= 2 * 8 * 10.0


def test_where_there_is_too_much_to_do_everybody_still_gets_on() -> None:
    trainers = [Trainer(0.1), Trainer(0.1, lookahead=8), Trainer(3.0), Trainer(0.5, lookahead=4)]
    simulate(trainers, most_urgent, select_seconds=1.0, until=600.0)
    for trainer in trainers:
        # Nobody waits for longer than two selections of every run take.
        assert max(trainer.waited(10)) <= 2 * len(trainers)
        # Nor does anybody get less than by standing in line, training only while all others are served.
        assert len(trainer.done) >= 600 // (trainer.seconds + len(trainers)) - 1
