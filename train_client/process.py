"""Run the product's own commands as a user would: each in a process of its own, on its devices, its output in a log.

Imports nothing heavy, so that whoever runs others stays small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from shared.errors import SubbatchError

_GRACE_S = 20.0
_PR_SET_PDEATHSIG = 1
_FORGET_PEAK = "5"
_SERVER_PORTS = range(20000, 32000)
_PORTS_TRIED = 100
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Command:
    """A command that is running, in a process group of its own; it gets SIGTERM where we die before it."""

    def __init__(
        self,
        name: str,
        *arguments: object,
        log: Path,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        read_output: bool = False,
        dies_with_us: bool = False,
    ) -> None:
        """Start it.

        Args:
            name: What errors call it.
            arguments: Of the Python interpreter.
            log: Where its output goes.
            cores: The processor cores it stays on; none: any.
            environment: In place of `environment_of()`.
            read_output: Leave its standard output to `first_line`.
            dies_with_us: It gets SIGKILL where we die before it, which one that is paused hears too.
        """
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if read_output else file,
                stderr=file,
                env=dict(environment_of() if environment is None else environment),
                text=True,
                start_new_session=True,
                preexec_fn=_in_child(cores, signal.SIGKILL if dies_with_us else signal.SIGTERM),
            )

    @property
    def running(self) -> bool:
        """Whether it hasn't ended yet."""
        return self._process.poll() is None

    def first_line(self) -> str:
        """Wait for the first line of its standard output.

        Raises:
            SubbatchError: it ended without one.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise self._failure()
        return line

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            SubbatchError: it failed; the message has its last words.
        """
        if self._process.wait():
            raise self._failure()

    def peak_memory(self) -> int | None:
        """The most memory the running process has had resident so far, in bytes; None where that can't be told."""
        return peak_memory(self._process.pid)

    def pin(self, cores: Sequence[int]) -> None:
        """Keep it on these cores from now on, every thread that it has or will have; none given: where it is."""
        for thread in Path(f"/proc/{self._process.pid}/task").glob("*") if cores else ():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)

    def forget_peak_memory(self) -> None:
        """Let `peak_memory` begin anew, where the system lets us."""
        forget_peak_memory(self._process.pid)

    def pause(self) -> None:
        """Make it and what it started stand still; returns when it does, or has ended."""
        self._signal(signal.SIGSTOP)
        if self.running:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Make it and what it started end, if they haven't: SIGTERM, and SIGKILL where that doesn't do."""
        if self.running:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=_GRACE_S)
            finally:
                if self.running:
                    self._signal(signal.SIGKILL)
                    self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _failure(self) -> SubbatchError:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()] or ["nothing"]
        last = next((line for line in lines if line.startswith("error:")), lines[-1])
        return SubbatchError(f"{self.name} exited with {self._process.returncode}: {last} (all of it is in {self.log})")


def server_command(config: Path, *overrides: str) -> tuple[str, ...]:
    """The arguments that start a selector server."""
    return ("-m", "selector_server", "serve", "--config", str(config), *overrides)


def train_command(config: Path, *overrides: str, num_processes: int) -> tuple[str, ...]:
    """The arguments that start a training job, under torchrun where it has several ranks."""
    launcher: tuple[str, ...] = ()
    if num_processes > 1:
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}")
    return (*launcher, "-m", "train_client", "train", "--config", str(config), *overrides)


@contextlib.contextmanager
def selector_server(
    config: Path, *, log: Path, cores: Sequence[int] = (), environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A selector server that is ready; gives its address.

    Raises:
        SubbatchError: it can't serve.
    """
    options: dict[str, Any] = {"log": log, "cores": cores, "environment": environment, "read_output": True}
    with Command("the selector server", *server_command(config), **options) as command:
        yield command.first_line().split()[-1]


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C is taken, so that what was started ends too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment_of(**more: str) -> dict[str, str]:
    """Our environment with one thread a process, since processes share what cores there are."""
    return {**os.environ, **_ONE_THREAD, **more}


def available_cores() -> list[int]:
    """The cores that we may run on; none where the system doesn't say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now.

    A server takes seconds to start and bind it. Systems take the ports of outgoing connections from 32768 up, so one
    below that is unlikely to be gone by then.

    Raises:
        SubbatchError: none of many was free.
    """
    for port in random.SystemRandom().sample(_SERVER_PORTS, k=min(_PORTS_TRIED, len(_SERVER_PORTS))):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise SubbatchError(
        f"none of {_PORTS_TRIED} ports tried from {_SERVER_PORTS[0]} to {_SERVER_PORTS[-1]} is free: end what has them"
    )


def peak_memory(pid: int | str) -> int | None:
    """The most memory that a running process has had resident, in bytes; None where the system doesn't say.

    `getrusage` won't do: it also counts what the process held before it became this program.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak_memory(pid: int | str) -> None:
    """Let `peak_memory` begin anew at what a process holds now, where the system lets us."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_PEAK)


def count_lines(path: Path) -> int:
    """Whole lines of a file that another process may be writing; 0 where there is none yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _in_child(cores: Sequence[int], when_we_die: signal.Signals) -> Callable[[], None] | None:
    """What a new process does before it becomes the command."""
    if not sys.platform.startswith("linux"):
        return None
    set_option = ctypes.CDLL(None).prctl

    def prepare() -> None:
        set_option(_PR_SET_PDEATHSIG, when_we_die)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare
