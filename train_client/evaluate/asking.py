"""Questions → rows: ask, run the programs that come back, ask again where they gave nothing, compare.

Every step stays in the row, so that a reader can follow how a question came to be right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from train_client.evaluate.answers import extract_answer, find_program, marked_answer, printed_answer
from train_client.evaluate.engine import Engine, Generation
from train_client.evaluate.equality import Checker
from train_client.evaluate.prompts import ask_for_program, make_prompt, without_trigger
from train_client.evaluate.questions import Question
from train_client.evaluate.sandbox import run_programs
from train_client.evaluate.values import count_values

NO_PROGRAM, NOTHING_PRINTED = "no program in the output", "printed nothing"


@dataclass(frozen=True)
class Manner:
    """How questions are asked: the options of the same names."""

    ask: str
    trigger: str
    template: str
    max_new_tokens: int


@dataclass(frozen=True)
class Attempt:
    """One time that a question was asked.

    Attributes:
        asked: `program` or `plain`.
        prompt: What the model was given.
        output: What it generated.
        num_tokens: How many tokens that is.
        ended: Whether the model ended it; else it was cut at the limit.
        program: The program in it, or "".
        stdout: What the program printed.
        error: Why the attempt gave no answer, in one line, where something failed.
        answer: The answer it gives, or "".
        note: What cut the output short other than the limit.
    """

    asked: str
    prompt: str
    output: str
    num_tokens: int
    ended: bool
    program: str = ""
    stdout: str = ""
    error: str = ""
    answer: str = ""
    note: str = ""


def ask_questions(
    questions: Sequence[Question],
    engine: Engine,
    tokenizer: Any,
    manner: Manner,
    *,
    report: Callable[[str, int, int], None],
) -> list[list[Attempt]]:
    """Ask questions, all at a time.

    Args:
        questions: What to ask.
        engine: Who answers.
        tokenizer: The model's.
        manner: How.
        report: Told what is going on, how many of how many outputs are there.

    Returns:
        For each question its attempts, the last one being what counts.
    """
    first = "plain" if manner.ask == "plain" else "program"
    attempts = [[attempt] for attempt in _attempts(questions, engine, tokenizer, manner, first, report)]
    if manner.ask == "hybrid":
        again = [index for index, [attempt] in enumerate(attempts) if not attempt.answer]
        second = _attempts([questions[index] for index in again], engine, tokenizer, manner, "plain", report)
        for index, attempt in zip(again, second, strict=True):
            attempts[index].append(attempt)
    return attempts


def read_outputs(attempts: Sequence[Attempt], questions: Sequence[Question]) -> list[Attempt]:
    """Attempts with what follows from their outputs: programs are run, side by side, and answers extracted."""
    attempts = [replace(attempt, program=find_program(attempt.output)) for attempt in attempts]
    outcomes = iter(run_programs([attempt.program for attempt in attempts if attempt.program]))
    read = []
    for attempt, question in zip(attempts, questions, strict=True):
        if attempt.program:
            outcome = next(outcomes)
            printed = "" if outcome.error else printed_answer(outcome.stdout, values=count_values(question.answer))
            error = outcome.error or ("" if printed else NOTHING_PRINTED)
            read.append(replace(attempt, stdout=outcome.stdout, error=error, answer=printed))
        elif attempt.asked == "program":
            # Reasoning where a program was asked for counts if it says what its answer is.
            answer = marked_answer(attempt.output)
            read.append(replace(attempt, error=NO_PROGRAM, answer=answer))
        else:
            read.append(replace(attempt, answer=extract_answer(attempt.output)))
    return read


def make_row(question: Question, attempts: Sequence[Attempt], checker: Checker, *, tolerance: float) -> dict[str, Any]:
    """A line of answers.jsonl."""
    answer = attempts[-1].answer
    verdict = checker.compare(question.answer, answer, tolerance=tolerance)
    return {
        "set": question.set_name,
        "number": question.number,
        "id": question.id,
        "source": question.source,
        "question": question.text,
        "gold": question.answer,
        "answer": answer,
        "correct": verdict.right,
        "fell_back": len(attempts) > 1,
        "note": verdict.note,
        "attempts": [asdict(attempt) for attempt in attempts],
    }


def _attempts(
    questions: Sequence[Question],
    engine: Engine,
    tokenizer: Any,
    manner: Manner,
    asked: str,
    report: Callable[[str, int, int], None],
) -> list[Attempt]:
    texts = [_wording(question.text, asked, manner) for question in questions]
    prompts = [make_prompt(tokenizer, text, template=manner.template) for text in texts]
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("asking for programs" if asked == "program" else "asking", done, len(questions))

    outputs = engine.generate([prompt.ids for prompt in prompts], max_new_tokens=manner.max_new_tokens, advance=advance)
    report("running programs and comparing", done, len(questions))
    unread = [_unread(asked, prompt.text, output) for prompt, output in zip(prompts, outputs, strict=True)]
    return read_outputs(unread, questions)


def _wording(question: str, asked: str, manner: Manner) -> str:
    if asked == "program":
        return ask_for_program(question, manner.trigger)
    # Asked again for reasoning, a question must not ask for a program any more; asked once, it stands as it is.
    return without_trigger(question) if manner.ask == "hybrid" else question


def _unread(asked: str, prompt: str, output: Generation) -> Attempt:
    return Attempt(asked, prompt, output.text, output.num_tokens, output.ended, note=output.note)
