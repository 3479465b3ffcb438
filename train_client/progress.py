"""What the reference loop tells people: a live line, trackers, and files that the demo and benchmarks read."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from shared.records import Selection
from train_client.heldout import HeldoutLoss
from train_client.memory import PeakMemory
from train_client.outcome import RUN_FILE
from train_client.plugin import StepReport

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 15.0


class Progress:
    """Reports every step of one rank; rank 0 also reports to people and trackers."""

    def __init__(
        self, accelerator: Any, output: Path, *, first_step: int, num_steps: int, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Report to `output`; `facts` of a run that starts at step 0 go to its run.json with the first step."""
        output.mkdir(parents=True, exist_ok=True)
        self._accelerator, self._output = accelerator, output
        self._first_step, self._num_steps = first_step, num_steps
        self._facts = facts or {}
        self.memory = PeakMemory(accelerator.device)
        self._lines: TextIO | None = None
        self._bar: Bar | None = None
        self._next_log = 0.0

    def __enter__(self) -> Progress:
        if self._accelerator.is_main_process:
            console = Console(stderr=True)
            if console.is_terminal:
                columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
                self._bar = Bar(*columns, TimeRemainingColumn(), console=console)
                self._bar.start()
                self._bar.add_task("", total=self._num_steps, completed=self._first_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines:
            self._lines.close()
        if self._bar:
            self._bar.stop()

    def step(self, report: StepReport | None, figures: Mapping[str, float], *, learning_rate: float) -> None:
        """A step was attempted; `figures` are the plugin's."""
        assert report is not None
        lines = self._lines or self._open_lines()
        picks = dict(zip(report.selection.index.tolist(), _picks(report.selection), strict=True))
        row = {
            "step": report.selection.step,
            "weights_version": report.selection.weights_version,
            "large_batch_size": report.selection.large_batch_size,
            "learning_rate": learning_rate,
            "skipped": report.selection.skipped.tolist(),
            "fallback": report.selection.fallback,
            "step_seconds": report.step_seconds,
            **{f.name: getattr(report, f.name) for f in fields(report) if f.name not in ("selection", "selector")},
            "weights": [picks[number][0] for number in report.rows],
            "gains": [picks[number][1] for number in report.rows],
            "selector": asdict(report.selector),
        }
        lines.write(json.dumps(row) + "\n")
        lines.flush()
        self._accelerator.log({**figures, "learning_rate": learning_rate}, step=report.selection.step)
        if not self._accelerator.is_main_process:
            return
        text = f"loss {figures['loss']:.4f}  step {report.step_seconds:.2f} s  waited {report.wait_seconds:.2f} s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=report.selection.step + 1, description=text)
        elif time.monotonic() > self._next_log:
            self._next_log = time.monotonic() + _LOG_EVERY_S
            logger.info("step %d of %d: %s", report.selection.step + 1, self._num_steps, text)

    def _open_lines(self) -> TextIO:
        """Continue this rank's file; not before the run is open, or a refused one would cost an earlier one's files."""
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        path = self._output / f"steps-rank{rank}.jsonl"
        keep_steps_before(path, self._first_step)
        self._lines = path.open("a")
        if rank == 0:
            if self._first_step == 0:
                (self._output / RUN_FILE).write_text(json.dumps(self._facts) + "\n")
            for other in self._output.glob("steps-rank*.jsonl"):
                if int(other.stem.removeprefix("steps-rank")) >= ranks:
                    keep_steps_before(other, self._first_step)
        return self._lines

    def ended(self) -> None:
        """Every step was trained: add the peak memory of the rank that used most to the run's facts."""
        peaks = [self.memory.so_far()]
        if self._accelerator.num_processes > 1:
            peaks = gather_object(peaks)
        path = self._output / RUN_FILE
        if self._accelerator.is_main_process and path.exists():
            known = [peak for peak in peaks if peak is not None]
            facts = json.loads(path.read_text()) | {"peak_memory_bytes": max(known, default=None)}
            path.write_text(json.dumps(facts) + "\n")

    def heldout(self, step: int, loss: HeldoutLoss) -> None:
        """Held-out losses after `step` steps."""
        if not self._accelerator.is_main_process:
            return
        path = self._output / "heldout.jsonl"
        keep_steps_before(path, step)
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **asdict(loss)}) + "\n")
        self._accelerator.log({"heldout_loss": loss.balanced}, step=step)
        count = len(loss.by_source)
        logger.info("after step %d: held-out loss %.4f, mean over %d sources", step, loss.balanced, count)


def _picks(selection: Selection) -> list[tuple[float, float]]:
    """Weight and gain of each row of a selection."""
    return list(zip(selection.weight.tolist(), selection.gain.tolist(), strict=True))


def keep_steps_before(path: Path, step: int) -> None:
    """Drop what a job wrote past the checkpoint that this one resumes from, a torn last line included."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in lines if row.endswith("\n") and json.loads(row)["step"] < step))
