"""Proof that a generated program is right: it runs, and what it prints is the answer found without it."""

from __future__ import annotations

import builtins
import importlib
from fractions import Fraction
from types import ModuleType
from typing import Any

from shared.errors import DataError
from shared.synthetic.problems.problem import Number

MODULES = ("fractions", "math")
_BUILTINS = (
    "abs",
    "enumerate",
    "int",
    "len",
    "list",
    "max",
    "min",
    "pow",
    "range",
    "round",
    "sorted",
    "str",
    "sum",
    "zip",
)


def run_program(program: str) -> str:
    """Execute a program made by this package and return what it prints, without the last line end.

    It sees a few builtins and modules only. That keeps the families honest; it is no sandbox, and nothing that came
    from outside this package may be run here.

    Raises:
        DataError: the program fails.
    """
    printed: list[str] = []

    def record(*values: object) -> None:
        printed.append(" ".join(map(str, values)))

    known: dict[str, Any] = {name: getattr(builtins, name) for name in _BUILTINS}
    known |= {"print": record, "__import__": _import}
    try:
        exec(compile(program, "<program>", "exec"), {"__builtins__": known})
    except Exception as error:
        raise DataError(f"a generated program fails with {type(error).__name__}: {error}\n{program}") from error
    return "\n".join(printed)


def check_program(program: str, answer: Number | str) -> None:
    """Refuse a program that doesn't print the answer.

    Raises:
        DataError: it prints something else, or fails.
    """
    printed = run_program(program)
    if isinstance(answer, str):
        right = printed == answer
    else:
        try:
            right = Fraction(printed) == answer
        except ValueError:
            right = False
    if not right:
        raise DataError(f"a generated program prints {printed!r}, the answer is {answer}:\n{program}")


def _import(name: str, *_: object) -> ModuleType:
    if name not in MODULES:
        raise ImportError(f"{name!r} is not one of {MODULES}")
    return importlib.import_module(name)
