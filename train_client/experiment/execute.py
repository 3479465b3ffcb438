"""One run of an experiment: a server and a training job as a user starts them, then questions, then a result."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.config import Config
from shared.errors import SubbatchError
from train_client.experiment.collect import collect
from train_client.experiment.gallery import gallery_steps, make_gallery
from train_client.experiment.plan import Run
from train_client.experiment.seats import Seat
from train_client.outcome import Outcome
from train_client.process import Command, count_lines, free_port, server_command, train_command
from train_client.run_config import environment_beside_config, with_values, write_config

_POLL_S = 0.25
# Server and trainer start together; on a busy machine the trainer has imported everything long before the server.
_CONNECT_TIMEOUT_S = 600.0
_LOGS = ("run.toml", "server.log", "train.log", "evaluate.log")


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """The experiment is to end before this run does."""


@dataclass(frozen=True)
class Watch:
    """How a run's progress is told, and how it is told to end."""

    report: Callable[[str, int], None]
    stopped: threading.Event

    def pause(self) -> None:
        """Wait a moment.

        Raises:
            Interrupted: the run is to end now.
        """
        if self.stopped.wait(_POLL_S):
            raise Interrupted


def execute(run: Run, seat: Seat, *, watch: Watch, in_detail: bool) -> dict[str, Any]:
    """Run one arm with one seed and give its result; an earlier attempt's files are replaced.

    Args:
        run: What to run.
        seat: On which devices.
        watch: Told of every step.
        in_detail: Whether the result has a timeline and a gallery.

    Raises:
        SubbatchError: a part of it failed; its logs stay.
        Interrupted: it was told to end.
    """
    shutil.rmtree(run.work, ignore_errors=True)
    run.work.mkdir(parents=True)
    config = _placed(run)
    path = write_config(config, run.work / "run.toml")
    selector_memory = _train(run, config, path, seat, watch)
    outcome = Outcome.read(config.train.output)
    if not outcome.ranks or any(len(rank) != config.run.num_steps for rank in outcome.ranks):
        raise SubbatchError(
            f"{config.train.output} lacks steps of a rank, there are {config.run.num_steps}: run it again"
        )
    accuracy = _ask(run, config, path, seat, watch) if config.experiment.questions else None
    return collect(
        run,
        outcome,
        accuracy=accuracy,
        selector_memory=selector_memory,
        gallery=make_gallery(config, outcome, steps=gallery_steps(config)) if in_detail else [],
        with_timeline=in_detail,
    )


def _placed(run: Run) -> Config:
    """The run's configuration with places of its own, and a port that is free now."""
    port = free_port()
    values = {
        "server.host": "127.0.0.1",
        "server.port": port,
        "server.journal": run.work / "journal",
        "client.selector": f"127.0.0.1:{port}",
        "client.connect_timeout_s": max(run.config.client.connect_timeout_s, _CONNECT_TIMEOUT_S),
        "train.output": run.work / "train",
        "train.save_every": 0,
    }
    return with_values(run.config.model_dump(), values)


def _train(run: Run, config: Config, path: Path, seat: Seat, watch: Watch) -> int | None:
    """Train to the end; gives the server's peak memory, where its device is the processor."""
    steps = config.train.output / "steps-rank0.jsonl"
    server = _start("the selector server", run, seat.selector, seat, *server_command(path), log="server.log")
    with server:
        arguments = train_command(path, num_processes=config.experiment.num_processes)
        with _start("the trainer", run, seat.trainer, seat, *arguments, log="train.log") as trainer:
            while trainer.running:
                watch.pause()
                watch.report("training", count_lines(steps))
                if not server.running:
                    server.wait()
                    raise SubbatchError(f"the selector server ended before the trainer (see {server.log})")
            trainer.wait()
        return server.peak_memory() if seat.on_cores else None


def _ask(run: Run, config: Config, path: Path, seat: Seat, watch: Watch) -> dict[str, Any]:
    """Ask the trained model every question; gives what was right, by set and by source."""
    settings, out = config.experiment, run.work / "answers"
    arguments = ["-m", "train_client", "evaluate", "--config", path, "--adapter", config.train.output / "model"]
    arguments += [part for questions in settings.questions for part in ("--questions", questions)]
    arguments += ["--ask", settings.ask, "--max-new-tokens", settings.max_new_tokens, "--out", out]
    with _start("the evaluation", run, seat.all, seat, *arguments, log="evaluate.log") as evaluation:
        while evaluation.running:
            watch.pause()
            watch.report("asking", config.run.num_steps)
        evaluation.wait()
    scores = json.loads((out / "scores.json").read_text())
    return {"sets": scores["sets"], "by_source": scores["by_source"]}


def _start(name: str, run: Run, devices: tuple[int, ...], seat: Seat, *arguments: object, log: str) -> Command:
    environment = environment_beside_config()
    cores: tuple[int, ...] = devices if seat.on_cores else ()
    if devices and not seat.on_cores:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    title = f"{name} of {run.arm.name}, seed {run.seed},"
    return Command(title, *arguments, log=run.work / log, cores=cores, environment=environment)


def tidy(run: Run) -> None:
    """Delete what a finished run needs no more; its configuration and logs stay."""
    for path in run.work.iterdir():
        if path.name not in _LOGS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
