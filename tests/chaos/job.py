"""A training job that is started again from its newest checkpoint whenever it dies, as a cluster's scheduler would."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import descendants, rank_of, send
from tests.support import ENVIRONMENT, PYTHON
from train_client.checkpoint import latest_checkpoint

ROOT = Path(__file__).parents[2]


@dataclass
class Attempt:
    """One start of the job, with a folder of its own, so that nothing an earlier one wrote is written over.

    Attributes:
        number: From 0.
        first_step: Where it began.
        resumed: The checkpoint it began with.
        output: Its `train.output`.
        began_ns: When it was started, by `time.time_ns`.
        process: torchrun.
    """

    number: int
    first_step: int
    resumed: Path | None
    output: Path
    process: subprocess.Popen[bytes]
    began_ns: int = field(default_factory=time.time_ns)

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.output.with_suffix(".log")

    def pids(self) -> list[int]:
        """torchrun and everything below it."""
        return [self.process.pid, *descendants(self.process.pid)]

    def rank(self, rank: int) -> list[int]:
        """The process of a rank; none where it isn't there."""
        return [pid for pid in descendants(self.process.pid) if rank_of(pid) == rank]

    def rows(self, rank: int) -> list[dict[str, Any]]:
        """What a rank has told of its steps so far; a line that it was writing when it died is left out."""
        return rows_of(self.output, rank)

    def completed(self) -> int:
        """How many steps of the run this attempt has behind it."""
        path = self.output / "steps-rank0.jsonl"
        return self.first_step + (path.read_bytes().count(b"\n") if path.exists() else 0)

    def checkpoint(self) -> tuple[Path | None, int]:
        """Where the next attempt is to go on: this one's newest checkpoint, else what it began with."""
        found = latest_checkpoint(self.output)
        return (found, int(found.name.split("-")[1])) if found else (self.resumed, self.first_step)


def rows_of(output: Path, rank: int) -> list[dict[str, Any]]:
    """What a rank has told of its steps in `output`, whole lines alone."""
    path = output / f"steps-rank{rank}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


class Job:
    """The job and all of its attempts; the last of them is the one that counts."""

    def __init__(self, config: Path, folder: Path, *, ranks: int, selector: str, environment: Mapping[str, str] = {}):
        self._config, self._folder, self._selector, self.ranks = config, folder, selector, ranks
        self._environment = ENVIRONMENT | dict(environment)
        self.attempts: list[Attempt] = []
        self.start()

    @property
    def now(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    def start(self) -> Attempt:
        """Start the job, from the newest checkpoint if there is one."""
        resumed, first_step = self.now.checkpoint() if self.attempts else (None, 0)
        output = self._folder / f"attempt-{len(self.attempts):03d}"
        arguments = [
            f"--train.output={output}",
            f"--client.selector={self._selector}",
            # Before the first checkpoint there is nothing to go back to but the start.
            *([f"--train.resume={resumed}"] if resumed else ["--run.restart"] if self.attempts else []),
        ]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
        with output.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                [PYTHON, *launcher, "-m", "train_client", "train", "--config", str(self._config), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
            )
        self.attempts.append(Attempt(len(self.attempts), first_step, resumed, output, process))
        return self.now

    def kill(self) -> None:
        """kill -9 of every process of every attempt."""
        for attempt in self.attempts:
            send(attempt.pids() if attempt.process.poll() is None else [], signal.SIGKILL)
            attempt.process.wait()
