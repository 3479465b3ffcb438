"""All runs of an experiment that aren't finished: in which order, how many at a time, and what becomes of failures."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.markup import escape

from shared.errors import SubbatchError
from train_client.experiment.collect import write_json
from train_client.experiment.execute import Interrupted, Watch, execute, tidy
from train_client.experiment.plan import Plan, Run
from train_client.experiment.screen import Screen
from train_client.experiment.seats import Seat, seats

logger = logging.getLogger(__name__)


def run_all(plan: Plan, *, console: Console, keep: bool) -> list[str]:
    """Run what is left to do, seed by seed, so that an experiment that is ended early has whole seeds.

    Args:
        plan: What belongs to the experiment.
        console: Where progress is shown.
        keep: Leave journals, weights and answers of finished runs where they are.

    Returns:
        What failed, a line each.

    Raises:
        KeyboardInterrupt: after every process that was started has ended.
    """
    failures: list[str] = []
    stopped = threading.Event()
    lowest = min((run.seed for run in plan.runs), default=0)
    with Screen(console, plan) as screen:
        for batch, places in _batches(plan.to_do):
            free: SimpleQueue[Seat] = SimpleQueue()
            for seat in places:
                free.put(seat)

            def work(run: Run, free: SimpleQueue[Seat] = free) -> None:
                seat = free.get()
                try:
                    if not stopped.is_set():
                        _run_one(run, seat, screen=screen, stopped=stopped, lowest=lowest, keep=keep)
                finally:
                    free.put(seat)

            with ThreadPoolExecutor(max_workers=len(places)) as pool:
                futures = [(run, pool.submit(work, run)) for run in batch]
                try:
                    failures += [line for run, future in futures if (line := _failure(run, future, console))]
                except BaseException:
                    stopped.set()
                    raise
    return failures


def _batches(runs: Sequence[Run]) -> Iterator[tuple[list[Run], list[Seat]]]:
    """Runs that may share the machine, and the seats for them: of each seed, those that need no scores come first."""
    for _, group in groupby(runs, key=lambda run: run.seed):
        of_seed = list(group)
        for scores in (False, True):
            batch = [run for run in of_seed if run.scores is scores]
            if batch:
                scoring, others = seats(batch[0].config)
                yield batch, [scoring] if scores else others


def _run_one(run: Run, seat: Seat, *, screen: Screen, stopped: threading.Event, lowest: int, keep: bool) -> None:
    with screen.running(run) as report:
        result = execute(run, seat, watch=Watch(report, stopped), in_detail=run.seed == lowest)
        _require_paired(run, result)
        write_json(run.result, result)
        if not keep:
            tidy(run)
    screen.finished(run, result)


def _require_paired(run: Run, result: dict[str, Any]) -> None:
    """Refuse a run that didn't start where the other arms of its seed did.

    Raises:
        SubbatchError: other initial weights, or another base model.
    """
    for path in sorted(run.result.parents[1].glob(f"*/seed-{run.seed}.json")):
        other = json.loads(path.read_text())
        if path == run.result or other.get("variant", "") != run.arm.variant:
            continue
        for what, mine, theirs in (
            ("initial weights", result["initial_weights"], other["initial_weights"]),
            ("fingerprints", result["fingerprints"], other["fingerprints"]),
        ):
            if mine != theirs:
                raise SubbatchError(
                    f"arm {run.arm.name}, seed {run.seed}, began with {what} {mine}, arm {other['arm']} with {theirs}, "
                    f"so the two can't be compared: delete {path} to run that one again, or choose another --out"
                )
        return


def _failure(run: Run, future: Future[None], console: Console) -> str | None:
    """Wait for a run; a line about it where it failed."""
    try:
        future.result()
    except Interrupted:
        return None
    except SubbatchError as error:
        line = f"{run.arm.name}, seed {run.seed}: {error}"
    except Exception as error:  # the other arms are worth running whatever is wrong with this one
        logger.exception("arm %s, seed %d", run.arm.name, run.seed)
        line = f"{run.arm.name}, seed {run.seed}: {error!r}"
    else:
        return None
    console.print(f"[red]failed[/] {escape(line)}", soft_wrap=True)
    return line
