"""A server and its runs played step by step, with devices that are not all equally fast at all times.

What waits for what is as in `event_graph.py`; added are jitter, stragglers, and runs that compete for one server. A
run's own events follow from its selections by the recurrences there, so nothing but the server ever has to decide
anything: the simulation goes from one selection to the next, and all that happens in between is arithmetic. (No
framework for discrete events, then: its queue would hold one event per rank and step, where a maximum over ranks does.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.timing import Timing
from train_client.plan.costs import Costs, Layout, Noise

# As in `train_client.push`, which takes seconds to import; a test compares them.
MAX_UNDER_WAY = 2
Array = npt.NDArray[np.float64]
_COLUMNS = (
    "select_began", "select_ended", "train_began", "trained", "free_to_push", "ended", "upload_began", "upload_ended",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Played:
    """When everything happened: seconds since the first run began, float64 [runs, steps].

    Attributes:
        select_began: The server begins to load and select.
        select_ended: The selection is journalled.
        began: The ranks are free for the step.
        train_began: The selection is there and training begins.
        trained: The slowest rank is done.
        free_to_push: No older snapshot is in the way of one of these weights.
        ended: The snapshot is taken too, where there is one.
        upload_began: The upload of that snapshot begins; not a number where there is none.
        upload_ended: It is durable; not a number where there is none.
        rank_seconds: What each rank of the first run trained for, float64 [steps, ranks].
    """

    select_began: Array
    select_ended: Array
    began: Array
    train_began: Array
    trained: Array
    free_to_push: Array
    ended: Array
    upload_began: Array
    upload_ended: Array
    rank_seconds: Array


def factors(noise: Noise, random: np.random.Generator, *shape: int) -> Array:
    """What undisturbed times are multiplied with, of this shape."""
    width = math.sqrt(math.log1p(noise.jitter**2))
    factors = np.exp(width * random.standard_normal(shape) - width**2 / 2) if width else np.ones(shape)
    if noise.straggler_share:
        factors = np.where(random.random(shape) < noise.straggler_share, noise.straggler_slowdown, 1.0) * factors
    return factors


def simulate(costs: Costs, layout: Layout, noise: Noise, *, num_steps: int, seed: int) -> Played:
    """Play all runs from their first step to their last.

    Runs begin one after another within a step. A server selects for one run at a time, and next for that whose
    trainers will wait first: by the steps they have reported, at the pace of trainers that never wait.

    Args:
        costs: Mean seconds of every piece.
        layout: The runs' and the server's.
        noise: What the times are multiplied with.
        num_steps: Steps of every run, >= 1.
        seed: Of the noise; a run's training times depend on nothing else in the layout but its trainers.
    """
    timing = layout.timing(num_steps)
    versions = [timing.weights_version(step) for step in range(num_steps)]
    busy = costs.train_step(layout.trainers) + costs.snapshot_seconds / layout.push_every
    runs = []
    rank_seconds = np.empty(0)
    for number in range(layout.runs):
        train_random, other_random = (
            np.random.Generator(np.random.Philox(key=[seed, 2 * number + which])) for which in (0, 1)
        )
        train = costs.train_step(layout.trainers) * factors(noise, train_random, num_steps, layout.trainers)
        if number == 0:
            rank_seconds = train
        start = busy * number / layout.runs
        times = _Times.draw(costs, layout, noise, other_random, train.max(axis=1))
        runs.append(_Run(number, start, busy, timing, versions, times))
    for server in range(layout.servers):
        _serve(runs[server :: layout.servers])
    columns = {name: np.array([getattr(run, name) for run in runs]) for name in _COLUMNS}
    starts = np.array([[run.start] for run in runs])
    began = np.concatenate([starts, columns["ended"][:, :-1]], axis=1)
    return Played(began=began, rank_seconds=rank_seconds, **columns)


@dataclass(frozen=True)
class _Times:
    """One run's seconds of every piece in every step."""

    train: list[float]
    select: list[float]
    load: list[float]
    snapshot: list[float]
    upload: list[float]
    deliver: list[float]

    @classmethod
    def draw(
        cls, costs: Costs, layout: Layout, noise: Noise, random: np.random.Generator, slowest_rank: Array
    ) -> _Times:
        steps = len(slowest_rank)
        score = (costs.select(layout.selectors) - costs.serial_seconds) * factors(
            noise, random, steps, layout.selectors
        )
        others = (costs.serial_seconds, costs.load_seconds, costs.snapshot_seconds, costs.upload_seconds)
        serial, load, snapshot, upload, deliver = (
            seconds * factors(noise, random, steps) for seconds in (*others, costs.deliver_seconds)
        )
        select = score.max(axis=1) + serial
        return cls(*(each.tolist() for each in (slowest_rank, select, load, snapshot, upload, deliver)))


class _Run:
    """One run: when its next selection can begin, and what follows from it."""

    def __init__(
        self, number: int, start: float, busy: float, timing: Timing, versions: list[int], times: _Times
    ) -> None:
        self.number, self.start = number, start
        self._busy, self._timing, self._versions, self._times = busy, timing, versions, times
        self._durable = {0: start}
        self._uploads: list[float] = []
        self._loaded = 0
        self._reported = 0
        self.select_began: list[float] = []
        self.select_ended: list[float] = []
        self.train_began: list[float] = []
        self.trained: list[float] = []
        self.free_to_push: list[float] = []
        self.ended: list[float] = []
        self.upload_began: list[float] = []
        self.upload_ended: list[float] = []
        self.ready = start

    def deadline(self, now: float) -> float:
        """When the trainers will wait for the next selection, by what the server knows; past if they wait already.

        Trainers that waited for a selection began to train when it was sent, however long ago their last report is.
        """
        while self._reported < len(self.ended) and self.ended[self._reported] <= now:
            self._reported += 1
        began = self.ended[self._reported - 1] if self._reported else self.start
        if ahead := len(self.ended) - self._reported:
            began = max(began, self.select_ended[self._reported])
        return began + ahead * self._busy

    def select(self, now: float) -> float:
        """Make the next selection from now on, and everything that follows from it; returns when it is journalled."""
        step, times = len(self.ended), self._times
        loads = self._versions[step] != self._loaded
        self._loaded = self._versions[step]
        journalled = now + times.select[step] + (times.load[step] if loads else 0.0)
        free = self.ended[-1] if self.ended else self.start
        train_began = max(free, journalled + times.deliver[step])
        trained = free_to_push = train_began + times.train[step]
        ended, upload_began, upload_ended = free_to_push, math.nan, math.nan
        if self._timing.steps_using(step + 1):
            if len(self._uploads) >= MAX_UNDER_WAY:
                free_to_push = max(trained, self._uploads[-MAX_UNDER_WAY])
            ended = free_to_push + times.snapshot[step]
            upload_began = max(ended, self._uploads[-1]) if self._uploads else ended
            upload_ended = upload_began + times.upload[step]
            self._uploads.append(upload_ended)
            self._durable[step + 1] = upload_ended
        self.select_began.append(now)
        self.select_ended.append(journalled)
        self.train_began.append(train_began)
        self.trained.append(trained)
        self.free_to_push.append(free_to_push)
        self.ended.append(ended)
        self.upload_began.append(upload_began)
        self.upload_ended.append(upload_ended)
        self.ready = self._next_ready()
        return journalled

    def _next_ready(self) -> float:
        step = len(self.ended)
        if step == self._timing.num_steps:
            return math.inf
        allowed = self.ended[step - 1 - self._timing.lookahead] if step > self._timing.lookahead else self.start
        return max(allowed, self._durable[self._versions[step]])


def _serve(runs: list[_Run]) -> None:
    """Select for all runs, one selection at a time, until every run is done."""
    now = 0.0
    while math.isfinite(earliest := min(run.ready for run in runs)):
        now = max(now, earliest)
        waiting = [run for run in runs if run.ready <= now]
        chosen = min(waiting, key=lambda run: (run.deadline(now), run.number))
        now = chosen.select(now)


def simulate_alone(costs: Costs, layout: Layout, noise: Noise, *, num_steps: int, seed: int) -> dict[str, Array]:
    """Step times, float64 [steps], of the arms without a server, under the noise of the first run of `simulate`."""
    train_random, other_random = (np.random.Generator(np.random.Philox(key=[seed, which])) for which in (0, 1))
    slowest = factors(noise, train_random, num_steps, layout.trainers).max(axis=1)
    slowest_scorer = factors(noise, other_random, num_steps, layout.trainers).max(axis=1)
    floor = costs.train_step(layout.trainers) * slowest
    return {
        "floor": floor,
        "large_batch": costs.train_large_step(layout.trainers) * slowest,
        "inline": floor + costs.select_inline(layout.trainers) * slowest_scorer,
    }
