"""What a model says its answer is, and whether that is the right one; the truths are written by hand."""

from __future__ import annotations

import argparse
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigError
from train_client.evaluate.answers import extract_answer, find_program, marked_answer, printed_answer
from train_client.evaluate.equality import MATH_TOLERANCE, TOLERANCE, Checker
from train_client.evaluate.values import count_values
from train_client.experiment.arguments import add_arguments
from train_client.experiment.command import run_experiment


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    with Checker() as checker:
        yield checker


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3 + 4 = 7 ducks.\nThe answer is 7", "7"),
        ("First the answer is 3. Then 4 more, so the answer is 7.", "7"),
        ("The answer is 18 dollars. She keeps 3.", "18 dollars"),
        ("The answer is $3.50.", "$3.50"),
        ("The answer is: **1,234**", "1,234"),
        ("The answer is:\n\n18", "18"),
        ("Final Answer: \\(x=5\\)", "x=5"),
        ("Let's think about the multi-choice question.\nThe answer is B", "B"),
        ("Answer Choices: (A) 3 (B) 4\nSo it must be (B).", "B"),
        ("So $\\boxed{\\frac{1}{2}}$ is left, 3 times.", "\\frac{1}{2}"),
        ("\\boxed{3} at first; the answer is $\\boxed{5}$.", "5"),
        ("The answer is 3.\nNo: \\boxed{4}", "4"),
        ("16 - 3 = 13\n#### 13", "13"),
        ("We get 3/4 in the end", "3/4"),
        ("it falls to -4 degrees", "-4"),
        ("between 10 and 12%", "12%"),
        ("The total was $1,200.50 and no more", "$1,200.50"),
        ("x = 3, y = 4", "x = 3, y = 4"),
        ("\\frac{3}{4}", "\\frac{3}{4}"),
        ("Monday", "Monday"),
        ("I can't say.\nReally not.", ""),
        ("", ""),
        ("The answer is 5\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response:The answer is 4", "5"),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_only_a_marked_answer_counts_as_one() -> None:
    assert marked_answer("She has 18 left") == ""
    assert marked_answer("The answer is ") == ""


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("n0 = 3\nprint(n0)", "n0 = 3\nprint(n0)"),
        (" n0 = 3\nprint(n0)", "n0 = 3\nprint(n0)"),
        ("if True: print(3)", "if True: print(3)"),
        ("Here it is:\n```python\nprint(3)\n```\nwhich prints\n```\n3\n```", "print(3)"),
        ("```python\ndef f():\n    return 3\n```\nand then\n```py\nprint(f())\n```", "print(f())"),
        ("1. Like this:\n   ```python\n   x = 1\n   print(x)\n   ```", "x = 1\nprint(x)"),
        ("```python\nprint(3)", "print(3)"),
        ("```python\nx = 3\n```", "x = 3"),
        ("print(3)\n\n### Instruction:\nprint(4)", "print(3)"),
        ("You could call print(3) to see it. The answer is 3.", ""),
        ("```json\n{}\n```", ""),
        ("The answer is 3", ""),
    ],
)
def test_a_program_is_recognised_with_and_without_fences(text: str, program: str) -> None:
    assert find_program(text).rstrip("\n") == program


@pytest.mark.parametrize(
    ("stdout", "values", "answer"),
    [
        ("18\n", 1, "18"),
        ("step 1: 5\n18\n", 1, "18"),
        ("The answer is 18\n", 1, "18"),
        ("[3, 4]\n", 2, "3, 4"),
        ("3\n4\n", 2, "3, 4"),
        ("3\n4\n", 1, "4"),
        ("two numbers\n4\n", 2, "4"),
        ("{x: 3, y: 4}\n", 2, "{x: 3, y: 4}"),
        (" \n", 1, ""),
    ],
)
def test_what_a_program_prints_last_is_its_answer(stdout: str, values: int, answer: str) -> None:
    assert printed_answer(stdout, values=values) == answer


def test_answers_know_how_many_values_they_list() -> None:
    assert [count_values(text) for text in ("18", "(3, 4)", "x = 3, y = 4", "1,234", "1, 2 and 3", "Monday, 3")] == [
        1, 2, 2, 1, 3, 1,
    ]  # fmt: skip


RIGHT = [
    ("18", "18"), ("18", "18.0"), ("18", "17.999999999999996"), ("18", "18 dollars"), ("18", "$18"), ("18", "x = 18"),
    ("18", "20 - 2 = 18"), ("18", "Total cost: 18"), ("18 cm", "18"), ("1,234", "1234"), ("-3", "−3"), ("1000", "1e3"),
    ("0.5", "1/2"), ("\\frac{1}{2}", "0.5"), ("\\frac12", "\\dfrac{1}{2}"), ("3.5", "3 1/2"), ("7/2", "3\\frac{1}{2}"),
    ("25%", "25"), ("25%", "0.25"), ("0.25", "25%"), ("25", "25\\%"), ("90^\\circ", "90"), ("\\text{Monday}", "monday"),
    ("0.3333", "1/3"), ("\\sqrt{2}", "1.41421356"), ("\\sqrt{8}", "2*sqrt(2)"), ("2\\pi", "2*pi"),
    ("\\frac{\\sqrt{3}}{2}", "\\frac{3}{2\\sqrt{3}}"), ("2x+3", "3+2x"), ("x^2", "x**2"), ("y = 2x+3", "2x+3"),
    ("B", "B"), ("B", "(B) 7"), ("B", "B. 7"), ("(B)", "option B"), ("B", "B 7"),
    ("3, 4", "4 and 3"), ("(3, 4)", "3, 4"), ("x = 3, y = 4", "y=4, x=3"), ("3, 4", "{x: 3, y: 4}"),
    ("\\{1, 2\\}", "2, 1"), ("[2,5)", "[2, 5)"), ("(-\\infty, 2)", "(-\\infty,2)"),
    ("12345678901234567890", "12345678901234567890"),
]  # fmt: skip
WRONG = [
    ("18", ""), ("18", "19"), ("18", "18.4"), ("18", "-18"), ("18", "180"), ("2.5", "2.6"), ("1/3", "0.34"),
    ("12345678901234567890", "12345678901234567891"), ("B", "C"), ("B", "b"), ("B", "A dog and B"), ("B", "7"),
    ("(3, 4)", "(4, 3)"), ("3, 4", "3"), ("3", "3, 4"), ("x = 3, y = 4", "x=4, y=3"), ("[2,5)", "(2,5)"),
    ("(2, 5)", "[2, 5]"), ("9", "9 @ 3"), ("3", "9 @ 3"), ("14", "9 5"), ("5", "5 or 6"), ("2abc", "2x"),
    ("x+1", "x+2"),
    ("Monday", "Tuesday"), ("18", "nan"), ("18", "1/0"), ("18", "inf"), ("\\sqrt{2}", "1.5"), ("25%", "0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "answer"), RIGHT)
def test_the_right_answer_is_right_however_it_is_written(checker: Checker, right: str, answer: str) -> None:
    assert checker.compare(right, answer, tolerance=TOLERANCE).right


@pytest.mark.parametrize(("right", "answer"), WRONG)
def test_a_wrong_answer_is_wrong(checker: Checker, right: str, answer: str) -> None:
    assert not checker.compare(right, answer, tolerance=TOLERANCE).right


def test_the_tolerance_is_for_numbers_that_are_no_integers(checker: Checker) -> None:
    def right(gold: str, answer: str, tolerance: float) -> bool:
        return checker.compare(gold, answer, tolerance=tolerance).right

    assert right("2.5", "2.59", MATH_TOLERANCE)
    assert not right("2.5", "2.61", MATH_TOLERANCE)
    assert right("2.5", "2.5024", TOLERANCE)
    assert not right("2.5", "2.5026", TOLERANCE)
    assert not right("25", "25.1", MATH_TOLERANCE)
    assert right("\\sqrt{2}", "1.45", MATH_TOLERANCE)
    assert not right("\\sqrt{4}", "2.01", MATH_TOLERANCE)


def test_answers_that_would_take_for_ever_are_wrong_and_the_next_one_is_compared() -> None:
    with Checker(seconds=2) as checker:
        assert checker.compare("x+1", "1+x", tolerance=TOLERANCE).right  # so that starting isn't what takes long
        verdict = checker.compare("9", "9^{9^{9^{9}}}", tolerance=TOLERANCE)
        assert not verdict.right
        assert "2 s" in verdict.note
        assert not checker.compare("9", "9**9**9", tolerance=TOLERANCE).right
        assert not checker.compare("9", "9" * 100_000, tolerance=TOLERANCE).right
        assert not checker.compare("9", "(" * 299, tolerance=TOLERANCE).right
        assert not checker.compare("9", "1e9999", tolerance=TOLERANCE).right
        assert checker.compare("x+1", "1+x", tolerance=TOLERANCE).right


def test_answers_are_compared_in_any_thread() -> None:
    found = []
    with Checker() as checker:
        thread = threading.Thread(
            target=lambda: found.append(checker.compare("\\sqrt{8}", "2\\sqrt{2}", tolerance=TOLERANCE).right)
        )
        thread.start()
        thread.join()
    assert found == [True]


def test_without_math_verify_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "math_verify" else find_spec(name))
    with pytest.raises(ConfigError, match="Math-Verify, which isn't installed: pip install 'subbatch"):
        Checker()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(["paper", "--scale", "micro", "--smoke", "--out", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="Math-Verify"):
        run_experiment(arguments, [])
    assert not (tmp_path / "out" / "world").exists()
