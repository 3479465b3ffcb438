"""What a training job has done since it began, as rank 0 sees it, for its metrics.

The training thread adds a step at a time; scrapes read in threads of their own, under the same lock.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from shared.durations import Durations
from train_client.metrics import CAUSES, PARTS
from train_client.plugin import StepReport
from train_client.waited import wait_causes


class Tally:
    """The counts of one job.

    Attributes:
        lock: Held while a step is added; whoever reads holds it too, so that what is read belongs together.
    """

    def __init__(self, num_sources: int) -> None:
        """Begin with none.

        Args:
            num_sources: Of the store.
        """
        self.lock = threading.Lock()
        self.loss, self.staleness = float("nan"), 0
        self.steps = self.rows = self.tokens = self.fallbacks = self.received_bytes = 0
        self.step_seconds = Durations()
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.causes = dict.fromkeys(CAUSES, 0.0)
        self.sources: npt.NDArray[np.int64] = np.zeros(num_sources, dtype=np.int64)

    def add(self, report: StepReport) -> None:
        """A step was attempted."""
        with self.lock:
            self._add(report)

    def _add(self, report: StepReport) -> None:
        selection = report.selection
        self.steps += 1
        self.loss = report.loss
        self.rows += len(selection.index)
        self.tokens += int(selection.num_tokens.sum())
        self.sources = self.sources + np.bincount(selection.source, minlength=len(self.sources))
        self.fallbacks += selection.fallback
        if not selection.fallback:
            self.staleness = selection.step - selection.weights_version
        self.received_bytes += report.wire_bytes
        self.step_seconds.add(report.step_seconds)
        for part in PARTS:
            self.parts[part] += getattr(report, f"{part}_seconds")
        for cause, seconds in wait_causes(report).items():
            self.causes[cause] += seconds
