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
from collections.abc import Callable, Mapping, Sequence
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


class Forked:
    """A running command, with what tests use of `subprocess.Popen`."""

    def __init__(
        self, module: str, arguments: Sequence[object], *, environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> None:
        """Start `python -m module`; `stdout` and `stderr` are appended to, and may be one pipe."""
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
