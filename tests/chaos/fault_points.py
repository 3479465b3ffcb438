"""`selector-server` in a process that can kill itself at any call by which the journal reaches the disk.

    python -m tests.chaos.fault_points serve --config run.toml

The journal's `os` is replaced by one that counts its calls. A plan, a JSON file whose path is in FAULT_PLAN, says at
which of them the process sends itself SIGKILL; it is read once, when it appears, and counting begins there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from selector_server.journal import writer

PLAN = "FAULT_PLAN"
HALF = "after half of the bytes"


class Points:
    """Counts the points that are passed, and ends the process at the planned one."""

    def __init__(self, plan: Path, trace: Path | None) -> None:
        self._plan, self._trace = plan, trace
        self._left = 0
        self._only = ""

    def is_here(self, name: str) -> bool:
        """Pass a point; whether it is the one to die at."""
        if self._trace:
            with self._trace.open("a") as file:
                file.write(name + "\n")
        if not self._left and self._plan.exists():
            with contextlib.suppress(FileNotFoundError):
                plan = json.loads(self._plan.read_text())
                self._plan.unlink()
                self._left, self._only = plan["at"], plan.get("only", "")
        if not self._left or (self._only and self._only != name):
            return False
        self._left -= 1
        return self._left == 0

    def passed(self, name: str) -> None:
        """Pass a point where there is nothing to do before dying."""
        if self.is_here(name):
            die()


def die() -> None:
    """kill -9 of ourselves; nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Os:
    """The `os` of a journal, whose write, fsync, replace and ftruncate are points."""

    def __init__(self, points: Points) -> None:
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: Any) -> int:
        self._points.passed("before write")
        if self._points.is_here(HALF):
            os.write(descriptor, memoryview(data)[: len(data) // 2])
            die()
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._points.passed("before fsync")
        os.fsync(descriptor)
        self._points.passed("after fsync")

    def replace(self, source: Path, target: Path) -> None:
        self._points.passed("before rename")
        os.replace(source, target)

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._points.passed("before truncation")
        os.ftruncate(descriptor, size)


def install(plan: Path, trace: Path | None) -> None:
    """From now on the journals of this process pass through points; `trace` gets a line for each that is passed."""
    writer.os = _Os(Points(plan, trace))  # type: ignore[assignment]


def plan_to_die(plan: Path, *, at: int, only: str = "") -> None:
    """Let the process that watches `plan` die at the `at`-th point from now, or the `at`-th named `only`."""
    part = plan.with_suffix(".part")
    part.write_text(json.dumps({"at": at, "only": only}))
    part.replace(plan)


def install_from_environment() -> None:
    """With the plan that the environment names."""
    install(Path(os.environ[PLAN]), None)


if __name__ == "__main__":
    from selector_server.__main__ import main

    install_from_environment()
    main()
