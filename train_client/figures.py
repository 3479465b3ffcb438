"""What steps were and cost, as scalars for trackers: the one source of what every loop logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train_client.plugin import StepReport


class Figures:
    """Sums over the steps since they were taken last."""

    def __init__(self, mean_over_ranks: Callable[[float], float]) -> None:
        """`mean_over_ranks` is a collective."""
        self._mean_over_ranks = mean_over_ranks
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._weights_version = 0

    def add(self, report: StepReport) -> None:
        """A step was attempted."""
        for name, value in of_step(report).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._weights_version = report.selection.weights_version

    def take(self) -> dict[str, float]:
        """The means, and the weights version behind the last selection; nothing where no step was added."""
        if self._steps == 0:
            return {}
        means = {name: value / self._steps for name, value in self._sums.items()}
        means["loss"] = self._mean_over_ranks(means["loss"])
        means["weights_version"] = float(self._weights_version)
        self._sums, self._steps = {}, 0
        return means


def of_step(report: StepReport) -> dict[str, float]:
    """One step's scalars on this rank, by the names that they are logged under; `seconds/` is where a step's time went.

    Returns:
        `loss` and `tokens`, this rank's; `seconds/step` and its parts; of the selector its seconds, the rows that it
        skipped for their losses, and whether the step fell back to rows that weren't selected.
    """
    return {
        "loss": report.loss,
        "tokens": float(report.num_tokens),
        "seconds/step": report.step_seconds,
        "seconds/wait": report.wait_seconds,
        "seconds/prepare": report.prepare_seconds,
        "seconds/train": report.train_seconds,
        "seconds/optimizer": report.optimizer_seconds,
        "seconds/push": report.push_seconds,
        "selector/score_seconds": report.selector.score_seconds,
        "selector/pick_seconds": report.selector.pick_seconds,
        "selector/skipped_rows": float(len(report.selection.skipped)),
        "selector/fallback": float(report.selection.fallback),
    }
