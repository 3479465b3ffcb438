"""The paper's six sets by name, and where their questions come from.

MAmmoTH's evaluation, which the paper used, has all six in its repository. Three of them are on the Hugging Face hub as
well and are taken from there; of NumGLUE, Mathematics and SimulEq it asks a selection that only its repository has.

None of this has been run: it was written from the sets' public descriptions on a machine without a network. A name or
a column that is no longer what stands here ends in an error that says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shared.errors import DataError
from train_client.evaluate.equality import MATH_TOLERANCE, TOLERANCE
from train_client.evaluate.questions import QuestionSet, make_question, read_questions

_MAMMOTH = "https://raw.githubusercontent.com/TIGER-AI-Lab/MAmmoTH/main/math_eval/dataset"


@dataclass(frozen=True)
class HubSet:
    """A set on the hub; the answer is the column's text, or what that marks as its answer (#### or a box)."""

    path: str
    config: str | None
    splits: tuple[str, ...]
    question: str
    answer: str
    tolerance: float = TOLERANCE

    def rows(self) -> list[dict[str, Any]]:
        """Rows with `question` and `answer`."""
        from datasets import load_dataset

        parts = [load_dataset(self.path, self.config, split=split) for split in self.splits]
        return [{"question": row[self.question], "answer": row[self.answer]} for part in parts for row in part]


@dataclass(frozen=True)
class JsonSet:
    """A JSON list of objects with `question` and `answer` at an address."""

    path: str
    tolerance: float = TOLERANCE

    def rows(self) -> list[dict[str, Any]]:
        """Rows with `question` and `answer`."""
        from datasets import DownloadManager

        return list(json.loads(Path(DownloadManager().download(self.path)).read_text(encoding="utf-8")))


SETS: dict[str, HubSet | JsonSet] = {
    "gsm8k": HubSet("openai/gsm8k", "main", ("test",), "question", "answer"),
    "math": HubSet(
        "DigitalLearningGmbH/MATH-lighteval", "default", ("test",), "problem", "solution", tolerance=MATH_TOLERANCE
    ),
    # MAmmoTH asks all thousand.
    "svamp": HubSet("ChilleD/SVAMP", None, ("train", "test"), "question_concat", "Answer"),
    "numglue": JsonSet(f"{_MAMMOTH}/numglue/numglue.json"),
    "mathematics": JsonSet(f"{_MAMMOTH}/deepmind/deepmind.json"),
    "simuleq": JsonSet(f"{_MAMMOTH}/simuleq/simuleq.json"),
}


def load_sets(names: Sequence[str], limit: int | None = None) -> list[QuestionSet]:
    """Question sets by name or from files; a file wins over a set of the same name.

    Raises:
        DataError: neither a file nor a known set, or one that can't be loaded or used.
    """
    return [read_questions(Path(name), limit) if _is_file(name) else _load(name, limit) for name in names]


def _is_file(name: str) -> bool:
    return Path(name).is_file() or name.endswith((".jsonl", ".json")) or "/" in name


def _load(name: str, limit: int | None) -> QuestionSet:
    if name not in SETS:
        raise DataError(f"questions {name!r}: there is no such file, and the sets by name are {', '.join(SETS)}")
    source = SETS[name]
    try:
        rows = source.rows()
    except Exception as error:  # datasets, the hub and the network raise whatever they like
        raise DataError(
            f"question set {name} can't be loaded from {source.path} ({type(error).__name__}: {str(error)[:200]}): "
            "check the network, or give it as a JSONL file with question and answer: --questions FILE"
        ) from error
    questions = []
    for number, row in enumerate(islice(rows, limit)):
        # MAmmoTH's files may give an answer as text and as a number: [text, number].
        answer = row.get("answer")
        row = row | {"answer": answer[0]} if isinstance(source, JsonSet) and isinstance(answer, list) else row
        questions.append(make_question(name, number, row, where=f"question set {name} ({source.path}) row {number}"))
    if not questions:
        raise DataError(f"question set {name} ({source.path}) has no rows: give it as a JSONL file: --questions FILE")
    return QuestionSet(name, tuple(questions), source.tolerance)
