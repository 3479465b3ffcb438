"""What steps cost, for a Trainer's logs: the means since the last log, under the names that the reference loop logs."""

from __future__ import annotations

from train_client.plugin import StepReport


class Figures:
    """Sums over the steps since they were taken last."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._last: StepReport | None = None

    def add(self, report: StepReport) -> None:
        """A step was attempted."""
        figures = {
            "seconds/step": report.step_seconds,
            "seconds/wait": report.wait_seconds,
            "seconds/prepare": report.prepare_seconds,
            "seconds/train": report.train_seconds,
            "seconds/push": report.push_seconds,
            "selector/score_seconds": report.selector.score_seconds,
            "selector/pick_seconds": report.selector.pick_seconds,
            "selector/skipped_rows": float(len(report.selection.skipped)),
            "selector/fallback": float(report.selection.fallback),
        }
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in figures.items()}
        self._steps += 1
        self._last = report

    def take(self) -> dict[str, float]:
        """The means, and the weights version of the last selection; nothing where no step was added."""
        if self._last is None:
            return {}
        means = {name: value / self._steps for name, value in self._sums.items()}
        means["weights_version"] = float(self._last.selection.weights_version)
        self._sums, self._steps, self._last = {}, 0, None
        return means
