"""Sets of questions with known answers, from JSONL files or by name from the hub (`question_sets`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from train_client.evaluate.answers import marked_answer
from train_client.evaluate.equality import TOLERANCE

_ANSWER_KEYS = ("prediction", "output")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        set_name: The set it belongs to.
        number: Its place in the set, from 0.
        text: What is asked.
        answer: The right answer.
        source: A finer origin than the set; the set's name where none is given.
        id: What the set calls it, or "".
    """

    set_name: str
    number: int
    text: str
    answer: str
    source: str
    id: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Questions that are scored together; `tolerance` is that of `equality`."""

    name: str
    questions: tuple[Question, ...]
    tolerance: float = TOLERANCE

    @property
    def digest(self) -> str:
        """A hash of every question with its answer and source."""
        content = [[q.text, q.answer, q.source, q.id] for q in self.questions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_questions(path: Path, limit: int | None = None) -> QuestionSet:
    r"""The questions of a JSONL file whose lines have `question` and `answer`, and `source` and `id` where wanted.

    A set is named after its file. An answer may be text, a number, or a list of them; of a worked solution that marks
    its answer (`#### 18`, `\boxed{18}`, `The answer is 18`), that is taken.

    Raises:
        DataError: no such file, a line that can't be used (with its number), or no line at all.
    """
    questions: list[Question] = []
    for line, row in read_rows(path, limit):
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise DataError(f"{path} line {line}: 'question' must be a text, it is {_shown(row, 'question')}")
        questions.append(make_question(path.stem, len(questions), row, where=f"{path} line {line}"))
    return QuestionSet(path.stem, tuple(questions))


def read_predictions(path: Path, limit: int | None = None) -> tuple[QuestionSet, list[tuple[str, str]]]:
    """Questions and what somebody answered them, from a JSONL file with `answer` and either `prediction` or `output`.

    Returns:
        The questions (`question` may be missing), and for each of them which key held the prediction, and the text.

    Raises:
        DataError: as `read_questions`.
    """
    questions: list[Question] = []
    predictions: list[tuple[str, str]] = []
    for line, row in read_rows(path, limit):
        keys = [key for key in _ANSWER_KEYS if key in row]
        if len(keys) != 1:
            raise DataError(
                f"{path} line {line} has the keys {', '.join(row) or '(none)'}: give exactly one of "
                "'prediction' (a final answer) and 'output' (a model's whole output)"
            )
        value = row[keys[0]]
        if value is None or isinstance(value, (dict, bool)):
            raise DataError(f"{path} line {line}: '{keys[0]}' must be a text or a number, it is {value!r}")
        questions.append(make_question(path.stem, len(questions), row, where=f"{path} line {line}"))
        predictions.append((keys[0], _as_text(value)))
    return QuestionSet(path.stem, tuple(questions)), predictions


def make_question(set_name: str, number: int, row: dict[str, Any], *, where: str) -> Question:
    """A question from a row with the usual keys.

    Raises:
        DataError: no answer in it; `where` says of which row.
    """
    answer = row.get("answer")
    text = "" if answer is None or isinstance(answer, (dict, bool)) else _as_text(answer).strip()
    if not text:
        raise DataError(f"{where}: 'answer' must be a text, a number or a list, it is {_shown(row, 'answer')}")
    return Question(
        set_name,
        number,
        str(row.get("question") or ""),
        marked_answer(text) or text,
        source=str(row.get("source") or set_name),
        id=str(row.get("id", "")),
    )


def read_rows(path: Path, limit: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a JSONL file that aren't blank, with their numbers from 1.

    Raises:
        DataError: no such file, it isn't UTF-8, a line that is no JSON object, or none at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path} can't be read ({error.strerror}): give a JSONL file with question and answer"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text at byte {error.start}: give a JSONL file") from None
    found = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if found == limit:
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number} is not JSON ({error}): give one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is a JSON {type(row).__name__}: give one object a line")
        found += 1
        yield number, row
    if not found:
        raise DataError(f"{path} is empty: give a JSONL file with question and answer")


def check_names(sets: Sequence[QuestionSet]) -> None:
    """Raise DataError where two sets have one name, under which their scores would be mixed."""
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two sets of questions are named {name!r}: rename a file, sets are named after them")


def _as_text(value: Any) -> str:
    return ", ".join(map(_as_text, value)) if isinstance(value, list) else str(value)


def _shown(row: dict[str, Any], key: str) -> str:
    return repr(row[key])[:80] if key in row else f"missing; the line has {', '.join(map(repr, row)) or 'no keys'}"
