"""Commands of the product in processes that have imported everything already.

Most of the life of a small command is spent importing torch and transformers. So tests that start dozens of them fork
each from one process that did so once; from there on it is `python -m` with a standard output and error of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TextIO

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "pytest",
        "tests.e2e.forked",
        "selector_server.server",
        "selector_server.prepare",
        "train_client.train",
        "deepspeed",  # which Accelerate imports wherever it is installed
    ]
)
_MOST_OF_AN_ERROR = 4000


class Forked:
    """A running command, with what tests use of `subprocess.Popen`."""

    def __init__(
        self, module: str, arguments: Sequence[object], *, environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> None:
        """Start `python -m module`, or a script; `stdout` and `stderr` are appended to, and may be one pipe."""
        start = (module, list(map(str, arguments)), dict(environment), os.getcwd(), str(stdout), str(stderr))
        self.args = [module, *arguments]
        self._process = FORKS.Process(target=_become, args=start)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout: TextIO | None = None

    @classmethod
    def with_output(
        cls, module: str, arguments: Sequence[object], *, environment: Mapping[str, str], stderr: Path
    ) -> Forked:
        """The same, with standard output in a pipe."""
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder) / "stdout"
            os.mkfifo(pipe)
            process = cls(module, arguments, environment=environment, stdout=pipe, stderr=stderr)
            process.stdout = pipe.open()  # returns when the command has opened it, too
        return process

    @property
    def sentinel(self) -> int:
        """What `multiprocessing.connection.wait` can wait for: its end."""
        return self._process.sentinel

    @property
    def returncode(self) -> int | None:
        """As of `subprocess.Popen`."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs; that of a signal is negative."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkedRanks:
    """The ranks of a job, with what torchrun puts into their environment; when one fails, the others are killed."""

    def __init__(
        self, script: Path, arguments: Sequence[object], *, ranks: int, environment: Mapping[str, str], log: Path
    ) -> None:
        """Start `python script` for each rank; they share a log."""
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._log = log
        common = dict(environment) | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # they meet in this process's store
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        self.ranks = [
            Forked(
                str(script),
                arguments,
                environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=log,
            )
            for rank in range(ranks)
        ]

    def poll(self) -> int | None:
        """The exit code of the job: of the first rank that failed, 0 when all are done, None while it runs."""
        codes = [rank.poll() for rank in self.ranks]
        failed = next((code for code in codes if code), None)
        return None if failed is None and None in codes else failed or 0

    def until(self, is_so: Callable[[], bool], timeout: float = 120) -> None:
        """Wait for something that the job does, and demand that it still runs then."""
        deadline = time.monotonic() + timeout
        while not is_so():
            assert self.poll() is None, f"the job is over:\n{self._log.read_text()[-_MOST_OF_AN_ERROR:]}"
            assert time.monotonic() < deadline, f"nothing of the kind in {timeout:.0f} s"
            connection.wait([rank.sentinel for rank in self.ranks], 0.01)
        assert self.poll() is None, "the job is over"

    def finish(self, timeout: float = 240) -> None:
        """Wait, and demand success."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < deadline:
            left = [rank.sentinel for rank in self.ranks if rank.poll() is None]
            connection.wait(left, deadline - time.monotonic())
        code = self.poll()
        self.kill()
        assert code == 0, f"a rank ended with {code}:\n{self._log.read_text()[-_MOST_OF_AN_ERROR:]}"

    def kill(self) -> None:
        """kill -9 of every rank."""
        for rank in self.ranks:
            rank.kill()
            rank.wait()

    def __enter__(self) -> ForkedRanks:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _become(
    module: str, arguments: list[str], environment: dict[str, str], folder: str, stdout: str, stderr: str
) -> None:
    """Be `python -m module`, from its environment to its end."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    faulthandler.enable()
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        _exit_as_python_does(lambda: runpy.run_path(module, run_name="__main__"))
    _exit_as_python_does(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def _exit_as_python_does(main: Callable[[], object]) -> None:
    """`multiprocessing` would leave out waiting for threads and what was registered for the end."""
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(code))  # type: ignore[call-overload]
