"""How each source words a problem: the same working as sentences, as formulas, or as one of many kinds of program."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from textwrap import indent
from typing import NamedTuple, TypeAlias

from shared.errors import DataError
from shared.synthetic.problems.problem import Notation, Number, Problem, decimal, explain

LETTERS = "ABCDE"
_REQUESTS = (
    "Write a short Python program that prints the answer.",
    "Please solve this with a program in Python.",
    "Use Python to find the answer.",
)
_IMPORTS = {"Fraction": "fractions", "comb": "math", "gcd": "math", "isqrt": "math"}


class Written(NamedTuple):
    """One row's text, and the answer its text or its program must give: a number, a letter, or words."""

    instruction: str
    output: str
    answer: Number | str


Style: TypeAlias = Callable[[Problem, Random], Written]


def lines(problem: Problem, draw: Random) -> Written:
    """A sentence a line, as a teacher writes them."""
    return _reasoned(problem.question, "\n".join(explain(problem, PLAIN)), problem.answer)


def paragraph(problem: Problem, draw: Random) -> Written:
    """All sentences in one paragraph."""
    return _reasoned(problem.question, " ".join(explain(problem, PLAIN)), problem.answer)


def terse(problem: Problem, draw: Random) -> Written:
    """The equations, with hardly a word between them."""
    first, then, last = draw.choice(
        (("First #.", "Then #.", "Finally #."), ("We get #.", "Next, #.", "In the end, #."))
    )
    says = (first, *[then] * (len(problem.steps) - 2), last)
    steps = tuple(replace(step, say=say) for step, say in zip(problem.steps, says, strict=True))
    return paragraph(replace(problem, steps=steps), draw)


def textbook(problem: Problem, draw: Random) -> Written:
    """A solution under its heading, after a request to show it."""
    solution = "Solution. " + " ".join(explain(problem, PLAIN))
    return _reasoned(f"{problem.question} Show your work.", solution, problem.answer)


def numbered(problem: Problem, draw: Random) -> Written:
    """Numbered steps between an opening and a closing line, as a chat assistant writes them."""
    opening = draw.choice(("Let us solve this step by step.", "To solve this problem, we follow these steps."))
    steps = [f"{i}. {sentence}" for i, sentence in enumerate(explain(problem, PLAIN), start=1)]
    closing = f"This gives the final result {_text(problem.answer)}."
    return _reasoned(problem.question, "\n".join((opening, "", *steps, "", closing)), problem.answer)


def formulas(problem: Problem, draw: Random) -> Written:
    """A contest solution in LaTeX with a boxed result."""
    boxed = f"Thus the result is $\\boxed{{{_text(problem.answer, LATEX)}}}$."
    return _reasoned(problem.question, " ".join((*explain(problem, LATEX), boxed)), problem.answer, LATEX)


def multiple_choice(problem: Problem, draw: Random) -> Written:
    """The working, then the letter of the choice it leads to."""
    options, letter = _options(problem, draw)
    working = "\n".join(explain(problem, PLAIN))
    found = f"The result {_text(problem.answer)} is choice ({letter})."
    return _reasoned(f"{problem.question}\n{_choices(options)}", f"{working}\n{found}", letter)


def commented_program(problem: Problem, draw: Random) -> Written:
    """Telling names and a comment over each part."""
    what = draw.choice((("given", "steps"), ("what we know", "what we work out"), ("numbers in the text", "solution")))
    body = (f"# {what[0]}", *_given(problem), f"# {what[1]}", *_steps(problem), f"print({_result(problem)})")
    return _programmed(problem.question, "\n".join(body), problem.answer, draw)


def numbered_program(problem: Problem, draw: Random) -> Written:
    """Lower case, with numbers n0, n1, ... and steps t0, t1, ..."""
    names = {name: f"n{i}" for i, name in enumerate(problem.given)}
    names |= {step.name: f"t{i}" for i, step in enumerate(problem.steps)}
    text = "\n".join((*_given(problem), *_steps(problem), f"print({_result(problem)})"))
    program = re.sub(r"[a-z_]+", lambda m: names.get(m[0], m[0]), text)
    return _programmed(problem.question.lower(), program, problem.answer, draw)


def plain_program(problem: Problem, draw: Random) -> Written:
    """Statements from top to bottom."""
    body, result = _body(problem)
    return _programmed(problem.question, f"{body}\nprint({result})", problem.answer, draw)


def function_program(problem: Problem, draw: Random) -> Written:
    """Everything in a function that returns the result."""
    body, result = _body(problem)
    name = draw.choice(("solve", "solution", "find_answer"))
    program = f"def {name}():\n{indent(body, '    ')}\n    return {result}\n\nprint({name}())"
    return _programmed(problem.question, program, problem.answer, draw)


def choosing_program(problem: Problem, draw: Random) -> Written:
    """Computes the result, then looks it up among the choices."""
    options, letter = _options(problem, draw)
    body, result = _body(problem)
    table = ", ".join(f'"{key}": {value}' for key, value in zip(LETTERS, options, strict=True))
    search = (
        f"choices = {{{table}}}\nfor letter in choices:\n    if choices[letter] == {result}:\n        print(letter)"
    )
    return _programmed(f"{problem.question}\n{_choices(options)}", f"{body}\n{search}", letter, draw)


def _plain(expression: str) -> str:
    """`comb(5, 2) * 3 ** 4 % 7` as `C(5, 2) * 3^4 mod 7`."""
    return expression.replace(" ** ", "^").replace("%", "mod").replace("comb(", "C(")


def _latex(expression: str) -> str:
    expression = re.sub(r"comb\((\d+), (\d+)\)", r"\\binom{\1}{\2}", expression)
    expression = re.sub(r"isqrt\((\d+)\)", r"\\sqrt{\1}", expression)
    expression = re.sub(r"floor\((.*?)\)", r"\\lfloor \1 \\rfloor", expression)
    expression = re.sub(r" \*\* (\d+)", r"^{\1}", expression)
    return expression.replace("*", "\\cdot").replace("%", "\\bmod").replace("gcd(", "\\gcd(")


def _latex_number(value: Number) -> str:
    return str(value) if isinstance(value, int) else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


PLAIN = Notation(_plain, decimal, "")
LATEX = Notation(_latex, _latex_number, "$")


def _reasoned(instruction: str, working: str, answer: Number | str, notation: Notation = PLAIN) -> Written:
    return Written(instruction, f"{working}\nThe answer is {_text(answer, notation)}", answer)


def _programmed(question: str, program: str, answer: Number | str, draw: Random) -> Written:
    used = {name: module for name, module in _IMPORTS.items() if f"{name}(" in program}
    imports = "".join(f"from {module} import {name}\n" for name, module in used.items())
    return Written(f"{question} {draw.choice(_REQUESTS)}", imports + program, answer)


def _given(problem: Problem) -> list[str]:
    return [f"{name} = {value}" for name, value in problem.given.items()]


def _steps(problem: Problem) -> list[str]:
    return [f"{step.name} = {step.expression}" for step in problem.steps if step.expression]


def _result(problem: Problem) -> str:
    return [step.name for step in problem.steps if step.expression][-1]


def _body(problem: Problem) -> tuple[str, str]:
    """Statements, and the name that holds their result."""
    if problem.program:
        return problem.program, "answer"
    return "\n".join((*_given(problem), *_steps(problem))), _result(problem)


def _options(problem: Problem, draw: Random) -> tuple[list[int], str]:
    """The answer among four other whole numbers in rising order, and its letter."""
    answer = problem.answer
    if not isinstance(answer, int) or answer < 1:
        raise DataError(f"choices need a positive whole answer, not {answer}: {problem.question}")
    near = {answer + gap for gap in (-10, -5, -2, -1, 1, 2, 5, 10)} | {answer // 2, 2 * answer, answer + answer // 5}
    smaller, larger = sorted(n for n in near if 0 < n < answer), sorted(n for n in near if n > answer)
    place = min(draw.randrange(len(LETTERS)), len(smaller))
    options = [*draw.sample(smaller, place), answer, *draw.sample(larger, len(LETTERS) - 1 - place)]
    return sorted(options), LETTERS[place]


def _choices(options: list[int]) -> str:
    return "Answer Choices: " + " ".join(f"({key}) {value}" for key, value in zip(LETTERS, options, strict=True))


def _text(answer: Number | str, notation: Notation = PLAIN) -> str:
    return answer if isinstance(answer, str) else notation.number(answer)
