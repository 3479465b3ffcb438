"""A worked problem, the same whether a person explains it or a program computes it.

A family (see the neighbouring modules) states the question, the numbers it gives, and steps such as
`change = paid - cost`. It also states the answer, found on its own and not from the steps: they must agree.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import Any, TypeAlias

from shared.errors import DataError

Number: TypeAlias = int | Fraction

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: Fraction,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "comb": math.comb,
    "floor": math.floor,
    "gcd": math.gcd,
    "isqrt": math.isqrt,
}
_NAME = re.compile(r"[a-z]\w*")


@dataclass(frozen=True)
class Step:
    """One line of the working.

    `say` is the sentence for a reader, in which # stands for the equation. A step without an expression only talks.
    """

    say: str
    name: str = ""
    expression: str = ""


@dataclass(frozen=True)
class Problem:
    """A question with its working.

    `program`, where steps alone don't make a natural one, is Python that leaves its result in `answer`.
    """

    question: str
    answer: Number | str
    steps: tuple[Step, ...]
    given: Mapping[str, Number] = field(default_factory=dict)
    program: str = ""


@dataclass(frozen=True)
class Notation:
    """How a reader writes what Python writes.

    `expression` rewrites an expression whose numbers are filled in, `number` writes a value, `around` is put on both
    sides of a whole equation.
    """

    expression: Callable[[str], str]
    number: Callable[[Number], str]
    around: str


Family: TypeAlias = Callable[[Random], Problem]


def evaluate(expression: str, names: Mapping[str, Number]) -> Number:
    """The exact value of an arithmetic expression in Python's notation; `/` gives a fraction.

    Raises:
        DataError: the expression holds anything but numbers, known names, operators and known functions.
    """

    def value(node: ast.expr) -> Number:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _whole(_OPERATORS[type(op)](value(left), value(right)))
            case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(value, args))
        raise DataError(f"{ast.unparse(node)!r} in {expression!r} is not arithmetic: known names are {sorted(names)}")

    return value(ast.parse(expression, mode="eval").body)


def explain(problem: Problem, notation: Notation) -> list[str]:
    """The working as sentences, every equation evaluated exactly.

    Raises:
        DataError: the steps don't arrive at the problem's answer.
    """
    known = dict(problem.given)
    sentences, value = [], None
    for step in problem.steps:
        equation = ""
        if step.expression:
            value = evaluate(step.expression, known)
            left = notation.expression(_fill(step.expression, known, notation))
            equation = f"{notation.around}{left} = {notation.number(value)}{notation.around}"
            known[step.name] = value
        sentences.append(step.say.replace("#", equation))
    if value is not None and not isinstance(problem.answer, str) and value != problem.answer:
        raise DataError(f"the steps give {value}, the answer is {problem.answer}: {problem.question}")
    return sentences


def decimal(value: Number) -> str:
    """A number as people write it: 7, 2.5, or 7/12 where two decimals don't do."""
    if 100 % Fraction(value).denominator:
        return str(value)
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def _fill(expression: str, known: Mapping[str, Number], notation: Notation) -> str:
    """The expression with numbers for names, in parentheses where they have a sign or a bar of their own."""

    def operand(match: re.Match[str]) -> str:
        name = match[0]
        if name not in known:
            return name
        text = notation.number(known[name])
        return f"({text})" if known[name] < 0 or "/" in text else text

    return _NAME.sub(operand, expression)


def _whole(value: Number) -> Number:
    return int(value) if value == int(value) else value
