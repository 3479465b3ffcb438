"""What a plan starts from: the seconds that each piece of a step takes, who there is to do it, and how evenly they do.

All are frozen and checked when they are made. Where the numbers come from is `sources.py`; what follows from them,
`predict.py` and `simulate.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from shared.errors import ConfigError
from shared.timing import Timing


@dataclass(frozen=True)
class Costs:
    """Seconds of one step's pieces, each on one device and undisturbed. None may be negative.

    Attributes:
        sub_batch_size: r, the rows that a step trains on.
        large_batch_size: b, the rows that a selection scores.
        train_seconds: Forward and backward of the r rows on one training device. Trainers divide it by rows.
        train_large_seconds: The same of all b rows.
        score_seconds: Forward passes and features of the b rows on one selector device. Selector devices divide it.
        inline_score_seconds: The same on one training device, for selection in the training process.
        fixed_seconds: What every step costs every trainer, however few its rows: optimizer, collate, all-reduce.
        serial_seconds: What a selection costs beside scoring, and more devices don't shorten: draw, pick, journal.
        snapshot_seconds: Copying the trained weights aside, on the training thread, in steps that push.
        upload_seconds: From a snapshot to durable on the server, in the background: encode, send, check, fsync.
        load_seconds: Loading a durable version before the first selection that uses it.
        deliver_seconds: From a journalled selection to every rank, and to the device.
        score_parts: Micro-batches that the b rows are scored in, which are dealt whole; None: as many as rows.
    """

    sub_batch_size: int
    large_batch_size: int
    train_seconds: float
    train_large_seconds: float
    score_seconds: float
    inline_score_seconds: float
    fixed_seconds: float = 0.0
    serial_seconds: float = 0.0
    snapshot_seconds: float = 0.0
    upload_seconds: float = 0.0
    load_seconds: float = 0.0
    deliver_seconds: float = 0.0
    score_parts: int | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be.

        Raises:
            ConfigError: a time that is negative or not finite, no training time, r outside [1, b], or parts outside
                [1, b].
        """
        for name in (field.name for field in fields(self) if field.name.endswith("_seconds")):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ConfigError(f"{name} is {value}: give seconds, 0 or more")
        if not self.train_seconds > 0:
            raise ConfigError(f"train_seconds is {self.train_seconds}: give the seconds that training on r rows takes")
        r, b = self.sub_batch_size, self.large_batch_size
        if not 1 <= r <= b:
            raise ConfigError(f"a sub-batch of {r} rows is to be chosen from {b}: give 1 <= r <= b")
        if self.score_parts is not None and not 1 <= self.score_parts <= b:
            raise ConfigError(f"score_parts is {self.score_parts}, a large batch has {b} rows: give 1 to {b}")

    def train_step(self, trainers: int) -> float:
        """Seconds from a sub-batch to the optimizer's end, on so many training devices, without a snapshot."""
        return self.train_seconds * _largest_share(self.sub_batch_size, trainers) + self.fixed_seconds

    def train_large_step(self, trainers: int) -> float:
        """The same for a large batch."""
        return self.train_large_seconds * _largest_share(self.large_batch_size, trainers) + self.fixed_seconds

    def select(self, selectors: int) -> float:
        """Seconds of a selection, from weights that are loaded to a journalled selection, on so many devices."""
        parts = self.score_parts or self.large_batch_size
        return self.score_seconds * _largest_share(parts, selectors) + self.serial_seconds

    def select_inline(self, trainers: int) -> float:
        """Seconds of a selection in the training process, where the trainers divide the scoring."""
        return self.inline_score_seconds * _largest_share(self.large_batch_size, trainers) + self.serial_seconds


@dataclass(frozen=True)
class Layout:
    """Who does the work, and what may overlap.

    Attributes:
        trainers: Training devices of each run, N.
        selectors: Devices of each selector server, G; they share every large batch.
        runs: Runs that are served, R.
        servers: Selector servers that the runs are dealt to.
        staleness: S.
        push_every: K.
        lookahead: Steps the server may work ahead of the slowest rank; None: S + K - 1.
        selector_price: An hour of a selector device, in hours of a training device.
    """

    trainers: int = 1
    selectors: int = 1
    runs: int = 1
    servers: int = 1
    staleness: int = 1
    push_every: int = 1
    lookahead: int | None = None
    selector_price: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what can't be.

        Raises:
            ConfigError: nobody to do the work, S < 0, K < 1, lookahead < S, or a price that isn't one.
        """
        for name in ("trainers", "selectors", "runs", "servers", "push_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.servers > self.runs:
            raise ConfigError(f"{self.servers} servers have {self.runs} runs to serve: give at most one to each run")
        if self.staleness < 0:
            raise ConfigError(f"staleness is {self.staleness}: give 0 or more")
        if self.lookahead is not None and self.lookahead < self.staleness:
            raise ConfigError(
                f"lookahead {self.lookahead} is less than staleness {self.staleness}, which would make the trainers "
                "wait for every selection: raise lookahead or lower staleness"
            )
        if not (math.isfinite(self.selector_price) and self.selector_price >= 0):
            raise ConfigError(f"selector_price is {self.selector_price}: give hours of a training device, 0 or more")

    @property
    def runs_per_server(self) -> int:
        """Runs of the server that has most."""
        return math.ceil(self.runs / self.servers)

    @property
    def selectors_per_run(self) -> float:
        """Selector devices of all servers, for each run."""
        return self.selectors * self.servers / self.runs

    def timing(self, num_steps: int) -> Timing:
        """The rules of what may overlap, for a run of so many steps."""
        default = self.staleness + self.push_every - 1
        return Timing(
            num_steps=num_steps,
            staleness=self.staleness,
            push_every=self.push_every,
            lookahead=default if self.lookahead is None else self.lookahead,
        )

    def with_staleness(self, staleness: int) -> Layout:
        """The same with another S, and the lookahead that goes with it."""
        return replace(self, staleness=staleness, lookahead=None)

    def with_selectors(self, selectors: int) -> Layout:
        """The same with another number of selector devices."""
        return replace(self, selectors=selectors)


@dataclass(frozen=True)
class Noise:
    """How much devices differ from their like and from themselves.

    Attributes:
        jitter: Standard deviation of a piece's time relative to its mean, lognormal, for every device and step anew.
        straggler_share: The probability that a device is a straggler in a step.
        straggler_slowdown: How many times as long it then takes.
    """

    jitter: float = 0.0
    straggler_share: float = 0.0
    straggler_slowdown: float = 3.0

    def __post_init__(self) -> None:
        """Refuse what can't be.

        Raises:
            ConfigError: negative jitter, a share outside [0, 1], or stragglers that are faster than others.
        """
        if not (math.isfinite(self.jitter) and self.jitter >= 0):
            raise ConfigError(f"jitter is {self.jitter}: give a part of the mean, 0 or more, such as 0.05")
        if not 0 <= self.straggler_share <= 1:
            raise ConfigError(f"straggler_share is {self.straggler_share}: give a probability, 0 to 1")
        if not (math.isfinite(self.straggler_slowdown) and self.straggler_slowdown >= 1):
            raise ConfigError(f"straggler_slowdown is {self.straggler_slowdown}: give a factor, 1 or more")


def _largest_share(parts: int, devices: int) -> float:
    """The share of the work that the busiest device has, where equal parts are dealt whole."""
    return math.ceil(parts / devices) / parts
