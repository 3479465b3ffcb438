"""Everything a soak breaks: server, network, disk and job, each of which is put up again by somebody who watches."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.chaos import fault_points
from tests.chaos.job import ROOT, Attempt, Job
from tests.chaos.proxy import Network
from tests.processes import send
from tests.support import ENVIRONMENT, PYTHON

POLL_S = 0.05
# Server and job start within this time on a machine that is busy; longer is a hang.
PATIENCE_S = 300.0
# Attempts in a row that train nothing before the soak is given up.
_MOST_IN_VAIN = 6


class SoakError(AssertionError):
    """Something that no fault excuses."""


@dataclass(frozen=True)
class Died:
    """An attempt that ended with an error: when, and its last words."""

    attempt: int
    unix_ns: int
    words: str


class Serving:
    """A `selector-server serve` process on one port, which may be told to die at a fault point."""

    def __init__(self, config: Path, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.plan = folder / "plan.json"
        self.address = ""
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it, where it was before, and return when it is ready."""
        self.plan.unlink(missing_ok=True)
        port = ["--server.port", self.address.rsplit(":", 1)[1]] if self.address else []
        with (self._folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-m", "tests.chaos.fault_points", "serve", "--config", str(self._config), *port],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=ENVIRONMENT | {fault_points.PLAN: str(self.plan)},
                text=True,
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline() if wait([self.process.stdout], PATIENCE_S) else ""
        if not ready.startswith("selector-server ready on "):
            raise SoakError(f"the server did not start, see {self._folder / 'server.log'}")
        self.address, self.starts = ready.split()[-1], self.starts + 1

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; it must end well."""
        self.process.terminate()
        if code := self.process.wait(timeout=PATIENCE_S):
            raise SoakError(f"the server ended with {code} at SIGTERM, see {self._folder / 'server.log'}")


class Rig:
    """One run that is being trained."""

    def __init__(self, config: Path, folder: Path, *, ranks: int, deadline: float, disk: Path | None) -> None:
        """Start everything.

        Args:
            config: The run's.
            folder: For logs and what is trained.
            ranks: Of the job.
            deadline: On the clock of `time.monotonic`; past it everything here fails.
            disk: Where the journal's own small disk is mounted; None where it has none.
        """
        self._deadline, self.disk = deadline, disk
        self.died: list[Died] = []
        with contextlib.ExitStack() as stack:
            self.server = Serving(config, folder)
            stack.callback(self.server.kill)
            self.network = stack.enter_context(Network(self.server.address))
            self.job = Job(config, folder, ranks=ranks, selector=self.network.address)
            stack.callback(self.job.kill)
            self._stack = stack.pop_all()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep_up(self) -> None:
        """Start again what has died."""
        if self.server.process.poll() is not None:
            self.server.start()
        if (code := self.job.now.process.poll()) not in (None, 0):
            self.died.append(Died(self.job.now.number, time.time_ns(), last_words(self.job.now, code)))
            newest = self.job.attempts[-_MOST_IN_VAIN:]
            if len(newest) == _MOST_IN_VAIN and all(each.completed() == each.first_step for each in newest):
                raise SoakError(f"{_MOST_IN_VAIN} attempts in a row ended without a step: {self.died[-1].words}")
            self.job.start()

    @property
    def is_done(self) -> bool:
        """Whether the job has trained all of its steps and ended well."""
        return self.job.now.process.poll() == 0

    def wait_for(self, what: str, condition: Callable[[], Any], *, keep_up: bool = True) -> None:
        """Wait, keeping everything up.

        Raises:
            SoakError: it took too long.
        """
        patience = min(time.monotonic() + PATIENCE_S, self._deadline)
        while not condition():
            if time.monotonic() > patience:
                words = "\n".join(self.job.now.log.read_text(errors="replace").splitlines()[-5:])
                raise SoakError(f"waited in vain for {what}; the job's last words:\n{words}")
            if keep_up:
                self.keep_up()
            time.sleep(POLL_S)

    def wait_for_progress(self) -> None:
        """Return once the job has trained two more steps, of which the second began after now, or is done."""
        attempt, completed = self.job.now, self.job.now.completed()

        def trains() -> bool:
            now = self.job.now
            return self.is_done or now.completed() >= (completed if now is attempt else now.first_step) + 2

        self.wait_for("the job to train on", trains)

    @contextlib.contextmanager
    def paused(self, pids: list[int]) -> Iterator[None]:
        """Let processes stand still for the length of a block."""
        send(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            send(pids, signal.SIGCONT)


def last_words(attempt: Attempt, code: int | None) -> str:
    """Why an attempt ended, as far as its log tells."""
    lines = [line.strip() for line in attempt.log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith(("error: ", "traceback : "))), f"exit code {code}")
