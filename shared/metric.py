"""What a Prometheus metric of ours is: its name with its unit, its kind, its labels and what it tells.

Each end lists all of its metrics in one module (`selector_server/metrics.py`, `train_client/metrics.py`); whatever is
exported, drawn on a dashboard or alerted on is one of these. Nothing here imports Prometheus's library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

# Sources are a store's own, and may be thousands. The largest get a label of their own, the rest share one.
MOST_SOURCES = 64
OTHER_SOURCES = "other sources"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: As it is scraped: with the base unit, and `_total` where it counts. A histogram is scraped as
            `NAME_bucket`, `NAME_sum` and `NAME_count`.
        kind: A counter begins at 0 again where its process does.
        help: What a value is, in a sentence.
        labels: Names of its labels.
        values: Of labels that take a few known values, these.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)

    @property
    def scraped_names(self) -> tuple[str, ...]:
        """The names under which its samples are scraped."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}{suffix}" for suffix in ("_bucket", "_sum", "_count"))

    def label_in_words(self, label: str) -> str:
        """A label with the values it takes, where these are known."""
        known = (self.values or {}).get(label)
        return f"{label}={'|'.join(known)}" if known else label
