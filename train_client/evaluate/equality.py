"""Whether an answer is the right one: text, choices, numbers and lists of numbers here, everything else by Math-Verify.

What a model answers may be built to hang whoever computes it (9**9**9). So nothing is evaluated in this process: plain
numbers are read, and Math-Verify works in another process, under a limit of memory, that is killed when it takes long.

**Tolerance.** Where the right answer is an integer, an answer must equal it, up to the rounding of floats (1e-9
relative). Where it is another number, an answer within `tolerance` of it, relative, is right: 4 % for MATH as in
MAmmoTH's evaluation, 0.1 % elsewhere, where MAmmoTH demands the same digits. A percentage equals both its number and
its fraction. A choice (a single letter) must be that letter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import selectors
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType

from shared.errors import ConfigError
from train_client.evaluate.values import comparable, core, plain, read_values, same_number, same_values

TOLERANCE = 1e-3
MATH_TOLERANCE = 0.04
_SECONDS = 10.0
_START_SECONDS = 120.0
_REMEDY = "pip install 'subbatch[evaluate]'"
# Nothing that anybody would call an answer is longer.
_MAX_CHARACTERS = 300

# `B`, `(B) 7`, `B. 7`, `B 7`; and in a phrase `(B)`, `option B`. `A dog` is no choice.
_CHOICE = re.compile(r"\(?([A-Z])\)?(?:[^\w\s].*|\s+[^\sA-Za-z].*)?", re.DOTALL)
_CHOICE_IN_PHRASE = re.compile(r"\(([A-Z])\)|\b(?:option|choice)\s+([A-Z])\b")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what kept it from being looked at closely, if anything did."""

    right: bool
    note: str = ""


def require_math_verify() -> None:
    """Make sure, before minutes are spent on answers, that they can be compared.

    Raises:
        ConfigError: Math-Verify isn't installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(f"answers are compared with Math-Verify, which isn't installed: {_REMEDY}")


class Checker:
    """Compares answers; a context manager, since it keeps a process for the hard ones."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        """A checker that gives up on an answer after `seconds`, and then calls it wrong.

        Raises:
            ConfigError: Math-Verify isn't installed.
        """
        require_math_verify()
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Checker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def compare(self, right: str, answer: str, *, tolerance: float) -> Verdict:
        """Whether `answer` is `right`.

        Args:
            right: The right answer.
            answer: A model's answer; "" is wrong.
            tolerance: Relative error that is allowed where the right answer is a number but no integer.

        Raises:
            ConfigError: Math-Verify is needed and doesn't start.
        """
        if not answer.strip():
            return Verdict(False)
        if choice := re.fullmatch(r"\(?([A-Z])\)?\.?", right.strip()):
            return Verdict(_choice(answer.strip()) == choice.group(1))
        ours, theirs = plain(right), plain(answer)
        if _same_text(ours, theirs):
            return Verdict(True)
        if len(answer) > _MAX_CHARACTERS:
            return Verdict(False, f"the answer has {len(answer)} characters, more than {_MAX_CHARACTERS}")
        ours, theirs = core(ours), core(theirs)
        if "=" in theirs and not re.search("[=,;]", ours) and not re.search("[,;]", theirs):
            theirs = theirs.rsplit("=", 1)[1]  # 5 - 3 = 2
        known, given = read_values(ours), read_values(theirs)
        if known and given and len(known.numbers) == len(given.numbers) == 1:
            return Verdict(same_number(known.numbers[0], given.numbers[0], tolerance))
        if known and given and comparable(known, given):
            return Verdict(same_values(known, given, tolerance))
        return self._math_verify(ours, theirs, tolerance)

    def _math_verify(self, right: str, answer: str, tolerance: float) -> Verdict:
        process = self._process or self._start()
        assert process.stdin
        question = {"right": right, "answer": answer, "tolerance": tolerance}
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            reply = b""
        else:
            reply = _line(process, self._seconds)
        if not reply:
            self._end()
            return Verdict(False, f"comparing took more than {self._seconds:g} s or too much memory")
        return Verdict(bool(json.loads(reply)["right"]))

    def _start(self) -> subprocess.Popen[bytes]:
        path = [os.path.abspath(entry) for entry in sys.path]
        program = f"import sys; sys.path[:] = {path!r}; from train_client.evaluate.equality_worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-W", "ignore", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if _line(self._process, _START_SECONDS) != b"ready\n":
            self._end()
            raise ConfigError(f"answers are compared with Math-Verify, which doesn't start: {_REMEDY}")
        return self._process

    def _end(self) -> None:
        if process := self._process:
            self._process = None
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line that a process prints; nothing where it ends or takes longer."""
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(seconds) else b""


def _choice(answer: str) -> str:
    """The letter that an answer chooses, or ""."""
    if chosen := _CHOICE.fullmatch(answer):
        return chosen.group(1)
    found = _CHOICE_IN_PHRASE.search(answer)
    return (found.group(1) or found.group(2)) if found else ""


def _same_text(right: str, answer: str) -> bool:
    return " ".join(right.split()).casefold() == " ".join(answer.split()).casefold() != ""
