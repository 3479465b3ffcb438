"""What a person sees while an experiment runs: a bar for everything, one for each run, and a line for every result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train_client.experiment.plan import Plan, Run

# Runs differ in cost, so that the estimate of what is left must look far back.
_LOOK_BACK_S = 6 * 3600.0
_LAST_BYTES = 1 << 16


class Screen:
    """Bars where there is a terminal; lines everywhere. Runs may report from several threads."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console, self._count = console, len(plan.runs)
        self._done = len(plan.finished)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        self._bars = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=_LOOK_BACK_S,
        )
        total = sum(run.cost for run in plan.to_do)
        self._all = self._bars.add_task("all runs", total=total, text=self._progress())

    def __enter__(self) -> Screen:
        if self._done:
            self._console.print(f"{self._done} of {self._count} runs are finished already")
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def running(self, run: Run) -> Iterator[Callable[[str, int], None]]:
        """Show a run; gives what it tells its progress to, in words and steps."""
        steps = run.config.run.num_steps
        bar = self._bars.add_task(f"{run.arm.name}, seed {run.seed}", total=steps, text="starting")
        told = 0

        def report(stage: str, done: int) -> None:
            nonlocal told
            loss = last_loss(run.work / "train" / "steps-rank0.jsonl") if done else None
            text = f"{stage}, step {done} of {steps}" + (f", loss {loss:.3f}" if loss is not None else "")
            self._bars.update(bar, completed=done, text=text)
            self._bars.advance(self._all, (done - told) * run.cost / steps)
            told = done

        try:
            yield report
            report("done", steps)
        finally:
            self._bars.remove_task(bar)

    def finished(self, run: Run, result: dict[str, Any]) -> None:
        """Say what a run came to."""
        self._done += 1
        self._bars.update(self._all, text=self._progress())
        last = result["heldout"][-1]["balanced"] if result["heldout"] else None
        loss = f", held-out loss {last:.4f}" if last is not None else ""
        accuracy = ""
        if result["accuracy"]:
            sets = result["accuracy"]["sets"].values()
            right, asked = sum(each["correct"] for each in sets), sum(each["total"] for each in sets)
            accuracy = f", {right} of {asked} answers right"
        self._console.print(
            f"[{self._done}/{self._count}] {run.arm.title}, seed {run.seed}{loss}{accuracy}, steps took "
            f"{result['seconds']['wall']:.0f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _progress(self) -> str:
        return f"{self._done} of {self._count} runs"


def last_loss(path: Path) -> float | None:
    """The loss in the last whole line of a file that a trainer is writing."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - _LAST_BYTES))
        whole = file.read().rpartition(b"\n")[0].splitlines()
    try:
        return float(json.loads(whole[-1])["loss"])
    except (IndexError, ValueError):
        return None
