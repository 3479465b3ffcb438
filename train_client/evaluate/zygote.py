"""The process whose forks run the programs: it has imported what they import, and holds nothing that is worth reading.

`sandbox` starts it with an empty environment and one descriptor, a socket. It never sees a program: each request
carries three memory files (program, output, error), which only the fork reads and writes. So a fork finds no other
program in its memory, and has nowhere to write but its own two files. Forking costs milliseconds, starting an
interpreter with sympy most of a second.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn, TextIO

from train_client.evaluate.jail import Limits, address_space, end_with_parent, lock_down
from train_client.evaluate.library import preload

REFUSED = "refused by the sandbox"
OUT_OF_MEMORY = b"MemoryError"
_OUTPUT, _ERROR = 1, 3
_MAX_ERROR_BYTES = 500


@dataclass
class _Running:
    number: int
    deadline: float
    late: bool = False


def main(descriptor: int, parent: int) -> None:
    """Serve requests until the other end of the socket closes; programs that still run then are killed.

    Args:
        descriptor: The socket's number. A request is `{"number": n, "limits": {...}}` with three descriptors; the
            answer to each is `{"number": n, "status": a waitpid status, "late": killed for wall time}`.
        parent: The process that started this one.
    """
    end_with_parent(parent)
    control = socket.socket(fileno=descriptor)
    preload()
    _seed()
    own_bytes = address_space()
    wake = _wake_on_child_exit()
    # Collected now and never looked at again: a fork's collections then leave these pages shared.
    gc.collect()
    gc.freeze()
    control.send(b"ready")

    running: dict[int, _Running] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = [file for file, _ in poll.poll(_milliseconds_to_first_deadline(running))]
        if control.fileno() in ready:
            request, files, _, _ = socket.recv_fds(control, 4096, 3)
            if not request:
                return
            order = json.loads(request)
            limits = Limits(**order["limits"])
            zygote = os.getpid()
            if (child := os.fork()) == 0:
                _child(files, limits, zygote=zygote, own_bytes=own_bytes)
            for file in files:
                os.close(file)
            running[child] = _Running(order["number"], time.monotonic() + limits.wall_seconds)
        if wake in ready:
            os.read(wake, 4096)
        for child, status in _ended():
            it = running.pop(child)
            control.send(json.dumps({"number": it.number, "status": status, "late": it.late}).encode())
        for child, it in running.items():
            if not it.late and time.monotonic() >= it.deadline:
                it.late = True
                os.kill(child, signal.SIGKILL)


def _seed() -> None:
    """Give every program the same random numbers in every evaluation, as far as they come from a seed."""
    for name in ("numpy.random", "sympy.core.random"):
        if name in sys.modules:
            sys.modules[name].seed(0)


def _wake_on_child_exit() -> int:
    """A descriptor that becomes readable when a fork has ended."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    return wake


def _milliseconds_to_first_deadline(running: dict[int, _Running]) -> float | None:
    deadlines = [it.deadline for it in running.values() if not it.late]
    return max(0.0, min(deadlines) - time.monotonic()) * 1000 + 1 if deadlines else None


def _ended() -> list[tuple[int, int]]:
    """Process ids and statuses of the forks that have ended since the last call."""
    ended = []
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0] != 0:
            ended.append(found)
    return ended


def _child(files: list[int], limits: Limits, *, zygote: int, own_bytes: int) -> NoReturn:
    """Become one program, in a fork that never returns."""
    exit_now = os._exit
    try:
        source, stdout = _enter(files, limits, zygote=zygote, own_bytes=own_bytes)
        message = _run(source)
        with suppress(Exception):
            stdout.flush()
        os.write(_ERROR, message[: min(_MAX_ERROR_BYTES, limits.output_bytes)])
        exit_now(0)
    finally:
        # Never an ordinary exit: that would run what the program has registered with atexit, and the callers of this.
        exit_now(1)


def _enter(files: list[int], limits: Limits, *, zygote: int, own_bytes: int) -> tuple[str, TextIO]:
    """Take the program's text, keep only its two files, and lock this process down.

    Returns:
        The text, and the file that `print` writes to.
    """
    program, output, error = files
    try:
        source = os.pread(program, os.fstat(program).st_size, 0).decode()
        os.dup2(output, _OUTPUT)
        error = os.dup2(error, _ERROR)
        os.dup2(0, 2)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > _ERROR:
                with suppress(OSError):  # the listing's own is closed already
                    os.close(int(name))
        # Where memory runs out, a program should go, not the training job beside it.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end_with_parent(zygote)
        sys.stdout = stdout = open(_OUTPUT, "w", buffering=1, encoding="utf-8", closefd=False)
        random.seed(0)
        lock_down(limits, own_bytes=own_bytes)
    except BaseException as trouble:
        os.write(error, f"it can't be locked down: {trouble!r}".encode())
        raise
    return source, stdout


def _run(source: str) -> bytes:
    """Run a program's text as `__main__`; "" or one line that says how it failed."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    try:
        exec(compile(source, "<program>", "exec"), module.__dict__)
    except MemoryError:
        return OUT_OF_MEMORY
    except SystemExit as end:
        return b"" if end.code in (None, 0) else _line("SystemExit", end)
    except OSError as error:
        kind = type(error).__name__
        return _line(f"{REFUSED}: {kind}" if error.errno == errno.EPERM else kind, error)
    except BaseException as error:
        return _line(type(error).__name__, error)
    return b""


def _line(kind: str, error: BaseException) -> bytes:
    try:
        text = " ".join(str(error).split())
    except BaseException:  # the class is the program's, and so is what its __str__ does
        text = ""
    return (f"{kind}: {text}" if text else kind).encode(errors="replace")
