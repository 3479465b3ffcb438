"""`train-client evaluate`: what is asked, of whom and how, becomes answers.jsonl, scores.json and a table.

questions ──▶ asking (an engine, sandbox, answers) ──▶ equality ──▶ results
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shared.cli import read_config
from shared.config import Config
from shared.errors import ConfigError
from train_client.evaluate.answers import extract_answer
from train_client.evaluate.asking import Attempt, Manner, ask_questions, make_row, read_outputs
from train_client.evaluate.engine import Engine
from train_client.evaluate.equality import Checker
from train_client.evaluate.question_sets import load_sets
from train_client.evaluate.questions import Question, QuestionSet, check_names, read_predictions
from train_client.evaluate.results import (
    ANSWERS,
    SCORES,
    Answers,
    Row,
    make_scores,
    open_folder,
    score_table,
    source_table,
    write_json,
)

logger = logging.getLogger(__name__)
_MODEL_OPTIONS = ("questions", "config", "model", "adapter", "revision", "dtype", "device")


def run_evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Run the command.

    Args:
        arguments: What `arguments.add_arguments` defines.
        rest: `--branch.key VALUE` pairs.

    Raises:
        SubbatchError: anything that keeps the evaluation from starting or going on, with the remedy.
    """
    scores = _score_predictions(arguments, rest) if arguments.predictions else _ask_model(arguments, rest)
    write_json(arguments.out / SCORES, scores)
    console = Console()
    console.print(score_table(scores))
    if by_source := source_table(scores):
        console.print(by_source)
    console.print(f"every step of every answer: {arguments.out / ANSWERS}", soft_wrap=True, highlight=False)


def _score_predictions(arguments: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    given = [f"--{option}" for option in _MODEL_OPTIONS if getattr(arguments, option) is not None] + rest
    if given:
        raise ConfigError(f"--predictions asks no model, so it doesn't go with {' '.join(given)}: leave them out")
    questions, predictions = read_predictions(arguments.predictions, arguments.limit)
    [questions] = _with_tolerance([questions], arguments.tolerance)
    digest = hashlib.sha256(repr(predictions).encode()).hexdigest()
    settings = {
        "predictions": str(arguments.predictions),
        "predictions_digest": digest,
        **_of_sets([questions], arguments.limit),
    }
    todo = [(question, *predictions[question.number]) for question in questions.questions]
    with open_folder(arguments.out, settings) as answers, Checker() as checker:
        todo = [item for item in todo if _key(item[0]) not in answers.rows]
        programs = [item for item in todo if item[1] == "output"]
        unread = [Attempt("plain", "", output, 0, True) for _, _, output in programs]
        read = iter(read_outputs(unread, [question for question, _, _ in programs]))
        for question, key, text in todo:
            final = Attempt("plain", "", text, 0, True, answer=extract_answer(text))
            attempt = next(read) if key == "output" else final
            answers.add([make_row(question, [attempt], checker, tolerance=questions.tolerance)])
        return make_scores(_sorted(answers, [questions]), settings)


def _ask_model(arguments: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    config = read_config(arguments, rest)
    if not arguments.questions:
        raise ConfigError("nothing is asked: give --questions FILE|SET ..., or --predictions FILE")
    from train_client.evaluate.load import who_is_asked  # torch takes seconds to import

    named = {key: value for key in ("revision", "dtype") if (value := getattr(arguments, key)) is not None}
    who = who_is_asked(config.model.model_copy(update=named), arguments.model, arguments.adapter)
    sets = _with_tolerance(load_sets(arguments.questions, arguments.limit), arguments.tolerance)
    check_names(sets)
    manner = Manner(arguments.ask, arguments.trigger, arguments.template, arguments.max_new_tokens)
    settings = {**who.settings(), "engine": arguments.engine, **asdict(manner), **_of_sets(sets, arguments.limit)}
    with open_folder(arguments.out, settings) as answers, Checker() as checker:
        todo = [question for one in sets for question in one.questions if _key(question) not in answers.rows]
        if answers.rows:
            logger.info("%s: %d answers are there, %d questions to ask", arguments.out, len(answers.rows), len(todo))
        if todo:
            from shared.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(who.tokenizer, who.base.revision)
            engine = _engine(arguments, config, who, tokenizer)
            _ask_all(todo, {one.name: one.tolerance for one in sets}, engine, tokenizer, manner, answers, checker)
        return make_scores(_sorted(answers, sets), settings)


def _engine(arguments: argparse.Namespace, config: Config, who: Any, tokenizer: Any) -> Engine:
    if arguments.engine == "vllm":
        from train_client.evaluate.generate_vllm import VllmEngine

        return VllmEngine(who, tokenizer)
    import torch

    from train_client.evaluate.generate import TransformersEngine
    from train_client.evaluate.load import load_model, pick_device

    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = pick_device(arguments.device or config.train.device)
    return TransformersEngine(load_model(who, device), tokenizer, batch_size=arguments.batch_size)


def _ask_all(
    todo: Sequence[Question],
    tolerances: dict[str, float],
    engine: Engine,
    tokenizer: Any,
    manner: Manner,
    answers: Answers,
    checker: Checker,
) -> None:
    """Ask questions a chunk at a time, and write each chunk's rows when it is done."""
    # Similar lengths together waste little on padding; the longest first, so that what doesn't fit fails at once.
    todo = sorted(todo, key=lambda question: -len(question.text))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("asking", total=len(todo))
        for start in range(0, len(todo), engine.chunk):
            chunk = todo[start : start + engine.chunk]

            def report(doing: str, done: int, of: int) -> None:
                progress.update(task, description=f"{doing} ({done} of {of})")

            attempts = ask_questions(chunk, engine, tokenizer, manner, report=report)
            for question, tries in zip(chunk, attempts, strict=True):
                answers.add([make_row(question, tries, checker, tolerance=tolerances[question.set_name])])
                progress.advance(task)


def _with_tolerance(sets: Sequence[QuestionSet], tolerance: float | None) -> list[QuestionSet]:
    return list(sets) if tolerance is None else [replace(one, tolerance=tolerance) for one in sets]


def _of_sets(sets: Sequence[QuestionSet], limit: int | None) -> dict[str, Any]:
    """What the settings say of the questions."""
    return {
        "questions": {one.name: one.digest for one in sets},
        "tolerance": {one.name: one.tolerance for one in sets},
        "limit": limit,
    }


def _sorted(answers: Answers, sets: Sequence[QuestionSet]) -> list[Row]:
    return answers.sort([_key(question) for one in sets for question in one.questions])


def _key(question: Question) -> tuple[str, int]:
    return question.set_name, question.number
