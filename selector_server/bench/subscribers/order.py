"""What one measurement is, as both of its processes are told."""

from __future__ import annotations

import dataclasses
import json

from shared.records import Fingerprints, RunInfo
from shared.selection_config import SelectionConfig
from shared.timing import Timing

RUN = "subscribers"
VOCABULARY = 8
FINGERPRINTS = Fingerprints(dataset="random", tokenizer="none")


@dataclasses.dataclass(frozen=True)
class Order:
    """A run whose rows are picked at random, which takes no time, and the ranks that subscribe to it.

    Attributes:
        ranks: How many there are, each with a connection of its own.
        steps: Selections of the run.
        lookahead: How far the server works ahead of the slowest rank.
        reports: Whether the ranks report every step; without, `lookahead` must reach the end.
        sub_batch: Rows of a selection, half of its large batch; each takes 24 bytes on the wire.
        idle: Of the ranks, how many open a stream and read nothing until all others have everything; where there are
            reports, they say that they have trained every step.
        records: Whether each rank is sent the rows of its share, too, of MathInstruct's lengths.
    """

    ranks: int
    steps: int
    lookahead: int
    reports: bool
    sub_batch: int = 64
    idle: int = 0
    records: bool = False

    def to_json(self) -> str:
        """As a command line takes it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def info(self) -> RunInfo:
        """The run."""
        return RunInfo(
            name=RUN,
            seed=0,
            timing=Timing(self.steps, staleness=1, push_every=1, lookahead=self.lookahead, scores=False),
            world_size=self.ranks,
            selection=SelectionConfig(
                pick="random", large_batch_size=2 * self.sub_batch, sub_batch_size=self.sub_batch
            ),
            adapter_json="",
            trainable=(),
            fingerprints=FINGERPRINTS,
        )
