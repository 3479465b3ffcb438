"""A real server of several scoring processes, started by torchrun, accelerate or a fork, and what they are by pid."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import TCPStore

from tests.forked import Forked
from tests.support import ENVIRONMENT, PYTHON, Server

_LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node"),
    # `multi_gpu` is its word for several processes; a port of 0 is one that is free.
    "accelerate": (
        "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
        "--main_process_port=0", "--num_processes",
    ),
}  # fmt: skip


class ScaledServer(Server):
    """`torchrun --nproc_per_node G -m selector_server serve`, in a process group of its own."""

    def __init__(
        self,
        config: Path,
        *overrides: str,
        processes: int = 2,
        launcher: str = "torchrun",
    ) -> None:
        self._processes, self._launcher = processes, launcher
        super().__init__(config, *overrides)

    def _start(self, overrides: Sequence[str]) -> None:
        launcher = ["-m", *_LAUNCHERS[self._launcher], str(self._processes)]
        self.log = (self._config.parent / "server.log").open("ab")
        self._log_start = self.log.tell()
        self.process = subprocess.Popen(
            [PYTHON, *launcher, "-m", "selector_server", "serve", "--config", str(self._config), *overrides],
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
        self.wait_for_end(self.pid(rank), timeout)

    def wait_for_end(self, pid: int, timeout: float = 60) -> None:
        """Wait until a process has ended, even if nobody has asked for its exit code yet."""
        descriptor = os.pidfd_open(pid)
        try:
            ready, _, _ = select.select([descriptor], [], [], timeout)
            assert ready, f"process {pid} still runs after {timeout} s:\n{self.text()[-4000:]}"
        finally:
            os.close(descriptor)

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


class ForkedScaledServer(ScaledServer):
    """The same processes without a launcher and the imports that starting each takes, told what torchrun tells them."""

    def __init__(self, config: Path, *, processes: int = 2, module: str = "selector_server") -> None:
        self._module = module
        super().__init__(config, processes=processes)

    def _start(self, overrides: Sequence[str]) -> None:
        self.log = (self._config.parent / "server.log").open("ab")
        self._log_start = self.log.tell()
        self._meeting = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        arguments, log = ["serve", "--config", str(self._config), *overrides], Path(self.log.name)
        places = [self._environment_of(rank) for rank in range(self._processes)]
        self.process = Forked.with_output(self._module, arguments, environment=places[0], stderr=log)
        self._others = [
            Forked(self._module, arguments, environment=place, stdout=log, stderr=log) for place in places[1:]
        ]
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("selector-server ready on "), f"no ready line, see {log}"
        self.address = ready.split()[-1]

    def _environment_of(self, rank: int) -> dict[str, str]:
        return ENVIRONMENT | {
            "RANK": str(rank),
            "WORLD_SIZE": str(self._processes),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(self._meeting.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store above is everybody's
        }

    def pid(self, rank: int) -> int:
        return [self.process, *self._others][rank].pid

    def stop(self) -> int:
        code = super().stop()
        for other in self._others:
            assert other.wait(timeout=60) == 0
        return code

    def kill(self) -> None:
        for process in (self.process, *self._others):
            process.kill()
            process.wait()
