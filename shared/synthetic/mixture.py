"""What a small experiment is made of: a balanced mixture to pre-train on, and an imbalanced one to fine-tune on.

Pre-training sees every source's kinds of problem equally often, in plain words and plain programs, all of them right.
Fine-tuning sees the sources' own wordings at MathInstruct's relative sizes, with what real instruction data has
besides: rows that restate another row, rows that the model has already learnt, and wrong answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from random import Random

from shared.errors import DataError
from shared.synthetic import styles
from shared.synthetic.checks import check_program
from shared.synthetic.corpus import MIN_ROWS, SOURCES, CorpusFiles, Row, write_corpus, write_rows

_MAX_TRIES = 2000
_FRAMES = (
    "Question: {}",
    "{} Explain how you get there.",
    "Here is a problem. {}",
    "Can you help me with this one? {}",
    "Solve the following. {}",
    "{} Thank you!",
)
_SWAPS = (
    ("How many", "What number of"),
    ("What is", "Find"),
    ("Calculate", "Compute"),
    (" each ", " every "),
    (" total", " overall total"),
)
_NUMBER = re.compile(r"\d+")
_LETTER = re.compile(r"\(([A-E])\)|The answer is ([A-E])$")


@dataclass(frozen=True)
class Blemishes:
    """Which shares of each source's rows are not what they should be.

    Attributes:
        restated: Another row of the source in slightly different words, its answer the same.
        mastered: A row of the pre-training mixture.
        wrong: A row whose result was changed.
    """

    restated: float = 0.2
    mastered: float = 0.4
    wrong: float = 0.05

    def __post_init__(self) -> None:
        """Refuse shares that aren't shares."""
        shares = (self.restated, self.mastered, self.wrong)
        if min(shares) < 0 or sum(shares) > 1:
            raise DataError(f"restated, mastered and wrong are shares of the rows, {shares} add up to {sum(shares)}")


def write_balanced(path: Path, *, rows_per_source: int, seed: int, avoid: Collection[str] = ()) -> list[Row]:
    """Write and return the pre-training mixture: rows with the keys source, instruction and output.

    Args:
        path: Where to.
        rows_per_source: Different rows of each source.
        seed: Which mixture.
        avoid: Instructions that must not be among them, such as those of held-out rows.

    Raises:
        DataError: more rows than a source has different questions.
    """
    rows: list[Row] = []
    for name, source in SOURCES.items():
        draw, seen = Random(f"{seed}/balanced/{name}"), set[str]()
        is_program = name.startswith("data/PoT/")
        for _ in range(_MAX_TRIES + 20 * rows_per_source):
            if len(seen) == rows_per_source:
                break
            problem = draw.choice(source.families)(draw)
            written = (styles.plain_program if is_program else styles.paragraph)(problem, draw)
            if written.instruction not in seen and written.instruction not in avoid:
                seen.add(written.instruction)
                if is_program:
                    check_program(written.output, written.answer)
                rows.append({"source": name, "instruction": written.instruction, "output": written.output})
        if len(seen) < rows_per_source:
            raise DataError(f"{name} has only {len(seen)} different questions, not {rows_per_source}: ask for fewer")
    Random(f"{seed}/balanced").shuffle(rows)
    write_rows(path, rows)
    return rows


def write_mixture(
    folder: Path,
    *,
    rows: int,
    heldout_per_source: int,
    questions_per_source: int,
    blemishes: Blemishes,
    learnt: list[Row],
    seed: int,
) -> CorpusFiles:
    """Write the fine-tuning mixture as `write_corpus` does, then spoil shares of its training rows.

    Without blemishes the training rows are `write_corpus`'s; held-out rows and questions always are.

    Args:
        folder: Where to.
        rows: Training rows.
        heldout_per_source: Held-out rows of each source.
        questions_per_source: Questions for `train-client evaluate` of each source.
        blemishes: Which shares to spoil.
        learnt: The pre-training mixture.
        seed: Which mixture.
    """
    files = write_corpus(
        folder,
        rows=rows,
        heldout_per_source=heldout_per_source,
        questions_per_source=questions_per_source,
        seed=seed,
    )
    with files.train.open(encoding="utf-8") as file:
        train: list[Row] = [json.loads(line) for line in file]
    for name in SOURCES:
        draw = Random(f"{seed}/blemishes/{name}")
        places = [i for i, row in enumerate(train) if row["source"] == name]
        originals = [train[i] for i in places]
        known = [row for row in learnt if row["source"] == name]
        draw.shuffle(places)
        size = len(places)
        for place in _take(places, round(blemishes.restated * size)):
            train[place] = _restate(draw.choice(originals), draw)
        for place in _take(places, round(blemishes.mastered * size)):
            train[place] = draw.choice(known)
        for place in _take(places, round(blemishes.wrong * size)):
            train[place] = _spoil(train[place], draw)
    write_rows(files.train, train)
    return files


def _take(places: list[int], count: int) -> list[int]:
    """Take places out of a source's; MIN_ROWS of its rows stay as they are."""
    return [places.pop() for _ in range(min(count, len(places) - MIN_ROWS))]


def _restate(row: Row, draw: Random) -> Row:
    """The same question in slightly different words."""
    question = row["instruction"]
    for old, new in draw.sample(_SWAPS, 2):
        question = question.replace(old, new, 1)
    return {**row, "instruction": draw.choice(_FRAMES).format(question)}


def _spoil(row: Row, draw: Random) -> Row:
    """The row with its result changed: the last number of the answer, or the last letter of a choice."""
    text = row["output"]
    letters, numbers = list(_LETTER.finditer(text)), list(_NUMBER.finditer(text))
    if letters and text.endswith(letters[-1][0]):
        right = letters[-1][1] or letters[-1][2]
        at, wrong = text.rindex(right), draw.choice([letter for letter in styles.LETTERS if letter != right])
        return {**row, "output": text[:at] + wrong + text[at + 1 :]}
    if not numbers:
        return {**row, "output": text + " 0"}
    found = numbers[-1]
    wrong = str(int(found[0]) + draw.choice((1, 2, 3, 7, 10)))
    return {**row, "output": text[: found.start()] + wrong + text[found.end() :]}
