"""How a question comes to be right or wrong: scripted outputs, real programs, real comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.tokenizer import PROMPT_TEMPLATES
from train_client.evaluate.asking import NO_PROGRAM, NOTHING_PRINTED, Attempt, Manner, ask_questions, make_row
from train_client.evaluate.engine import Generation
from train_client.evaluate.equality import Checker
from train_client.evaluate.prompts import ask_for_program, make_prompt, without_trigger
from train_client.evaluate.questions import Question

TRIGGER = "Let's write a program."


class Characters:
    """A tokenizer whose tokens are characters; BOS is 1."""

    bos_token_id = 1
    chat_template = None

    def __call__(self, texts: Any, **settings: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {
                "input_ids": [1, *map(ord, texts)] if settings.get("add_special_tokens", True) else [*map(ord, texts)]
            }
        return {"input_ids": [list(map(ord, text)) for text in texts]}


class Script:
    """An engine that knows what to say to which instruction."""

    chunk = 8

    def __init__(self, outputs: dict[str, str]) -> None:
        self.outputs = outputs
        self.asked: list[str] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, advance: Callable[[int], None]
    ) -> list[Generation]:
        advance(len(prompts))
        texts = ["".join(map(chr, ids)).removeprefix("\x01") for ids in prompts]
        before, after = PROMPT_TEMPLATES["alpaca"].split("{instruction}")
        asked = [text.removeprefix(before).removesuffix(after) for text in texts]
        self.asked += asked
        return [Generation(self.outputs[text], len(text), True) for text in asked]


def ask(outputs: dict[str, str], mode: str, *questions: tuple[str, str]) -> tuple[list[list[Attempt]], Script]:
    engine = Script(outputs)
    asked = [Question("set", number, text, answer, "set") for number, (text, answer) in enumerate(questions)]
    manner = Manner(mode, TRIGGER, "alpaca", 100)
    return ask_questions(asked, engine, Characters(), manner, report=lambda *_: None), engine


def test_a_program_that_prints_decides_and_nothing_is_asked_again() -> None:
    [[attempt]], engine = ask({f"2 + 2? {TRIGGER}": "print(2 + 2)"}, "hybrid", ("2 + 2?", "4"))
    assert engine.asked == [f"2 + 2? {TRIGGER}"]
    assert (attempt.program, attempt.stdout, attempt.error, attempt.answer) == ("print(2 + 2)", "4\n", "", "4")


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("x = 1 / 0\nprint(x)", "ZeroDivisionError: division by zero"),
        ("if False: print(4)", NOTHING_PRINTED),
        ("```python\nx = 4\n```", NOTHING_PRINTED),
        ("I would add them: 4", NO_PROGRAM),
        ("print(open('/etc/passwd').read())", "refused by the sandbox"),
    ],
)
def test_where_a_program_fails_or_prints_nothing_the_question_is_asked_for_reasoning(output: str, error: str) -> None:
    outputs = {f"2 + 2? {TRIGGER}": output, "2 + 2?": "Two and two. The answer is 4"}
    [[first, second]], _ = ask(outputs, "hybrid", ("2 + 2?", "4"))
    assert error in first.error
    assert (first.answer, second.answer, second.asked) == ("", "4", "plain")


def test_only_the_questions_that_need_it_are_asked_again() -> None:
    outputs = {
        f"a? {TRIGGER}": "print(1)",
        f"b? {TRIGGER}": "oops",
        "b?": "The answer is 2",
        f"c? {TRIGGER}": "print(3)",
    }
    attempts, engine = ask(outputs, "hybrid", ("a?", "1"), ("b?", "2"), ("c?", "3"))
    assert [tries[-1].answer for tries in attempts] == ["1", "2", "3"]
    assert engine.asked == [f"a? {TRIGGER}", f"b? {TRIGGER}", f"c? {TRIGGER}", "b?"]


def test_reasoning_in_place_of_a_program_counts_if_it_says_its_answer() -> None:
    [[attempt]], _ = ask({f"2 + 2? {TRIGGER}": "Two and two.\nThe answer is 4"}, "hybrid", ("2 + 2?", "4"))
    assert (attempt.program, attempt.error, attempt.answer) == ("", NO_PROGRAM, "4")


def test_a_program_in_answer_to_a_plain_question_is_run() -> None:
    asked = f"2 + 2? {TRIGGER}"
    [[attempt]], engine = ask({asked: "print(2 + 2)"}, "plain", (asked, "4"))
    assert engine.asked == [asked]
    assert (attempt.answer, attempt.asked) == ("4", "plain")


def test_asked_for_programs_alone_a_failure_stays_without_an_answer() -> None:
    [[attempt]], _ = ask({f"2 + 2? {TRIGGER}": "print(2 +"}, "program", ("2 + 2?", "4"))
    assert attempt.answer == ""
    assert "SyntaxError" in attempt.error


def test_a_question_asks_for_a_program_only_once() -> None:
    worded = "How many? Let's write a Python program to solve it."
    assert without_trigger(worded) == "How many?"
    assert ask_for_program(worded, TRIGGER) == f"How many? {TRIGGER}"
    assert without_trigger("Let's write a program. How many?") == "Let's write a program. How many?"


def test_a_row_keeps_every_step_and_the_verdict() -> None:
    outputs = {f"2 + 2? {TRIGGER}": "print(5 / 0)", "2 + 2?": "The answer is 5"}
    [tries], _ = ask(outputs, "hybrid", ("2 + 2?", "4"))
    with Checker() as checker:
        row = make_row(Question("set", 0, "2 + 2?", "4", "source", "id"), tries, checker, tolerance=0)
    assert (row["answer"], row["gold"], row["correct"], row["fell_back"]) == ("5", "4", False, True)
    assert [attempt["output"] for attempt in row["attempts"]] == list(outputs.values())
    assert TRIGGER in row["attempts"][0]["prompt"]


def test_templates_put_the_same_tokens_around_a_question_as_training_does() -> None:
    tokenizer = Characters()
    assert make_prompt(tokenizer, "a?", template="none").ids == [1, *map(ord, "a?")]
    alpaca = make_prompt(tokenizer, "a?", template="alpaca")
    assert alpaca.ids == [1, *map(ord, PROMPT_TEMPLATES["alpaca"].format(instruction="a?"))]
    with pytest.raises(ConfigError, match="no chat template"):
        make_prompt(tokenizer, "a?", template="chat")
