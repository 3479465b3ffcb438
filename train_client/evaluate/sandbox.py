"""Runs programs that a model has written, each in a process that can compute and print and do nothing else.

    parent ──socket──▶ zygote ──fork──▶ one process a program, locked down (`jail`) before the program starts
       └── three memory files a program: its text, what it prints, how it failed

`zygote` forks one process a program, from an interpreter that has already imported `library`'s modules and started with
an empty environment. A program holds /dev/null and its own two memory files, whose length the kernel bounds; what
it writes there is all it can say, and a program that lies in them lies about itself alone. How it ended comes from
the kernel, through the zygote.

On two cores of a shared machine starting took 1.1 s, then 230 programs a second ran that print a sum, or 47 that
solve an equation with sympy; in CPU time 9 and 31 ms each, where a new interpreter takes 380 ms for the latter. So hand
over many programs in one call. Programs can take `workers` times the memory limit together.

Linux on x86_64 and aarch64, as root or not, in containers too; anywhere else, and where the kernel can't filter system
calls, an error is raised before any program is run. A program is expected to be wrong or hostile, not to know a
flaw of the kernel in one of the few calls that `jail` allows.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from shared.errors import ConfigError, SandboxError
from train_client.evaluate.jail import MACHINES, Limits
from train_client.evaluate.zygote import OUT_OF_MEMORY, REFUSED

__all__ = ["Limits", "Outcome", "run_programs"]

_DEFAULT = Limits()
# Run before the first program of others: opening the root folder must be refused.
_PROBE = "import os\nos.open('/', os.O_RDONLY)"
_LAST_WORDS = "what it said is on stderr, and nothing if the kernel killed it for memory"
_REMEDY = "evaluate on Linux on x86_64 or aarch64, outside container runtimes that hide seccomp filters"


@dataclass(frozen=True)
class Outcome:
    """How one program ended.

    Attributes:
        stdout: What it printed, cut at the limit; bytes that aren't UTF-8 are replaced.
        error: "" where it ended well, else one line for a reader.
    """

    stdout: str
    error: str


@dataclass(frozen=True)
class _Files:
    output: int
    error: int

    def read(self, length: int) -> tuple[str, str]:
        output, error = (os.pread(file, length, 0).decode(errors="replace") for file in (self.output, self.error))
        return output, error

    def close(self) -> None:
        os.close(self.output)
        os.close(self.error)


def run_programs(programs: Sequence[str], limits: Limits = _DEFAULT, *, workers: int = 0) -> list[Outcome]:
    """Run programs side by side, each as its own `__main__`.

    Args:
        programs: Their texts.
        limits: What each may use.
        workers: Programs that run at a time; 0 means as many as this process may use cores.

    Returns:
        Their outcomes, in order. A failing program is an outcome, never an exception.

    Raises:
        ConfigError: a limit that isn't positive.
        SandboxError: programs can't be confined here, or the process that forks them has died.
    """
    _check(limits)
    if not programs:
        return []
    workers = workers or len(os.sched_getaffinity(0))
    with _zygote() as control:
        _probe(control)
        return _serve(control, programs, limits, workers)


def _check(limits: Limits) -> None:
    for name, value in asdict(limits).items():
        if value <= 0:
            raise ConfigError(f"a program's limit {name} must be positive, it is {value}")


@contextmanager
def _zygote() -> Iterator[socket.socket]:
    """Start the process that forks programs; closing the socket ends it and them."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise SandboxError(f"programs can't be confined on {sys.platform} on {platform.machine()}: {_REMEDY}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = [os.path.abspath(entry) for entry in sys.path]
    start = f"from train_client.evaluate.zygote import main; main({theirs.fileno()}, {os.getpid()})"
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-s", "-W", "ignore", "-c", f"import sys; sys.path[:] = {path!r}; {start}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        try:
            if ours.recv(4096) != b"ready":
                raise SandboxError(f"the process that forks programs didn't start; {_LAST_WORDS}")
            yield ours
        finally:
            ours.close()
            process.wait()


def _environment() -> dict[str, str]:
    """Nothing of ours but what the dynamic loader needs; equal hashes and one thread for everyone."""
    fixed = {"TZ": "UTC0", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return fixed | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _probe(control: socket.socket) -> None:
    """Raise SandboxError unless the kernel confines a program."""
    [outcome] = _serve(control, [_PROBE], _DEFAULT, workers=1)
    if not outcome.error.startswith(REFUSED):
        found = outcome.error or "a program could open the root folder"
        raise SandboxError(f"programs can't be confined on this machine: {found}; {_REMEDY}")


def _serve(control: socket.socket, programs: Sequence[str], limits: Limits, workers: int) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    running: dict[int, _Files] = {}
    try:
        for number, program in enumerate(programs):
            if len(running) == workers:
                _finish(control, running, limits, outcomes)
            running[number] = _Files(os.memfd_create("output"), os.memfd_create("error"))
            _start(control, number, program, running[number], limits)
        while running:
            _finish(control, running, limits, outcomes)
    except ConnectionError as error:
        raise SandboxError(f"the process that forks programs has died; {_LAST_WORDS}") from error
    finally:
        for files in running.values():
            files.close()
    return [outcomes[number] for number in range(len(programs))]


def _start(control: socket.socket, number: int, program: str, files: _Files, limits: Limits) -> None:
    with open(os.memfd_create("program"), "wb") as text:
        text.write(program.encode(errors="replace"))
        text.flush()
        request = json.dumps({"number": number, "limits": asdict(limits)})
        socket.send_fds(control, [request.encode()], [text.fileno(), files.output, files.error])


def _finish(control: socket.socket, running: dict[int, _Files], limits: Limits, outcomes: dict[int, Outcome]) -> None:
    """Wait until a program has ended, and note its outcome."""
    message = control.recv(4096)
    if not message:
        raise ConnectionError("end of file")
    answer = json.loads(message)
    files = running.pop(answer["number"])
    stdout, line = files.read(limits.output_bytes)
    files.close()
    outcomes[answer["number"]] = Outcome(stdout, _error(answer["status"], answer["late"], line, limits))


def _error(status: int, late: bool, line: str, limits: Limits) -> str:
    """One line for a reader, from how the kernel says a program ended and from what the program said."""
    code = os.waitstatus_to_exitcode(status)
    if late:
        return f"took more than {limits.wall_seconds:g} s"
    if code == -signal.SIGXCPU:
        return f"took more than {limits.cpu_seconds:g} s of CPU time"
    if code == -signal.SIGXFSZ:
        return f"printed more than {limits.output_bytes} bytes"
    if code == -signal.SIGSYS:
        return f"{REFUSED}: a system call of another architecture"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if line == OUT_OF_MEMORY.decode():
        return f"took more than {limits.memory_bytes / (1 << 20):g} MiB of memory"
    # A program may write what it likes here, terminal codes included.
    line = "".join(character for character in line.split("\n")[0] if character.isprintable())
    return line or (f"exit status {code}" if code else "")
