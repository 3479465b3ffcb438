"""A real server of several scoring processes under torchrun, and what they are by pid."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support import ENVIRONMENT, PYTHON, Server


class ScaledServer(Server):
    """`torchrun --nproc_per_node G -m selector_server serve`, in a process group of its own."""

    def __init__(self, config: Path, *overrides: str, processes: int = 2, script: Path | None = None) -> None:
        self._processes = processes
        super().__init__(config, *overrides, script=script)

    def _start(self, overrides: Sequence[str]) -> None:
        entry = [str(self._script)] if self._script else ["-m", "selector_server"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self._processes}"]
        self.log = (self._config.parent / "server.log").open("ab")
        self._log_start = self.log.tell()
        self.process = subprocess.Popen(
            [PYTHON, *launcher, *entry, "serve", "--config", str(self._config), *overrides],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=ENVIRONMENT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("selector-server ready on "), f"no ready line, see {self.log.name}"
        self.address = ready.split()[-1]

    def pid(self, rank: int) -> int:
        """The process of a rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ranks = {self._rank(child): int(child) for child in children}
        return ranks[rank]

    def wait_for_end_of(self, rank: int, timeout: float = 60) -> None:
        """Wait until the process of a rank is gone, in whose place torchrun starts no other."""
        pid = os.pidfd_open(self.pid(rank))
        try:
            ready, _, _ = select.select([pid], [], [], timeout)
            assert ready, f"rank {rank} still runs after {timeout} s:\n{self.text()[-4000:]}"
        finally:
            os.close(pid)

    def text(self) -> str:
        """What the processes and torchrun have logged since the last start."""
        return Path(self.log.name).read_bytes()[self._log_start :].decode()

    def kill(self) -> None:
        """kill -9 of the launcher and every process."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @staticmethod
    def _rank(pid: str) -> int:
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        found = re.search(r"(?:^|\0)RANK=(\d+)", environment)
        return int(found.group(1)) if found else -1
