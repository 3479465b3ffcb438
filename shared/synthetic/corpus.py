"""A data set in MathInstruct's shape, made from nothing: its 14 source files with their true relative sizes.

Not one sentence comes from a real data set. Each source has its own kinds of problem and its own wording, so that a
small model finds some sources easier than others. Every program is executed and every step is evaluated when it is
written; a wrong one is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from shared.errors import DataError
from shared.synthetic import styles
from shared.synthetic.checks import check_program
from shared.synthetic.problems.comparison import COMPARISONS
from shared.synthetic.problems.contest import CONTEST
from shared.synthetic.problems.exam import EXAM
from shared.synthetic.problems.facts import FACTS
from shared.synthetic.problems.lecture import ALGEBRA, CALCULUS, CHANCE
from shared.synthetic.problems.problem import Family
from shared.synthetic.problems.stories import STORIES
from shared.synthetic.problems.theorems import THEOREMS

MIN_ROWS = 4
_MAX_TRIES = 2000

Row = dict[str, str]


@dataclass(frozen=True)
class Source:
    """One source file: its rows in MathInstruct, and how we make rows like them."""

    size: int
    families: tuple[Family, ...]
    style: styles.Style


# Sizes as far as they are public (exact, as shares, or rounded). Two were chosen here so that all add up to the
# published 262,039 rows and the ten smallest to the published 70,615: number_comparison, whose size isn't published
# anywhere, and aqua_rat, within its published share of 34.1 %.
SOURCES: Mapping[str, Source] = {
    "data/CoT/MATH_train.json": Source(11_237, CONTEST, styles.formulas),
    "data/CoT/TheoremQA.json": Source(600, THEOREMS, styles.paragraph),
    "data/CoT/aqua_rat.json": Source(89_270, EXAM, styles.multiple_choice),
    "data/CoT/college_math.json": Source(1_840, ALGEBRA + CHANCE, styles.textbook),
    "data/CoT/gsm_rft.json": Source(28_300, STORIES, styles.terse),
    "data/CoT/gsm_train.json": Source(7_473, STORIES, styles.lines),
    "data/CoT/math50k_camel.json": Source(49_484, CALCULUS + ALGEBRA, styles.numbered),
    "data/CoT/number_comparison.json": Source(1_433, COMPARISONS, styles.paragraph),
    "data/PoT/MATH_train.json": Source(10_632, CONTEST, styles.plain_program),
    "data/PoT/TheoremQA.json": Source(700, THEOREMS, styles.function_program),
    "data/PoT/aqua_rat_filtered.json": Source(9_700, EXAM, styles.choosing_program),
    "data/PoT/gsm_gpt4.json": Source(14_000, STORIES, styles.commented_program),
    "data/PoT/mathqa.json": Source(24_370, EXAM, styles.numbered_program),
    "data/PoT/numglue.json": Source(13_000, FACTS, styles.function_program),
}


@dataclass(frozen=True)
class CorpusFiles:
    """What was written, `questions` only where some were asked for, and how many training rows each source has."""

    train: Path
    heldout: Path
    questions: Path
    rows_by_source: Mapping[str, int]


def write_corpus(
    folder: Path, *, rows: int, heldout_per_source: int, seed: int, questions_per_source: int = 0
) -> CorpusFiles:
    """Write `train.jsonl` and `heldout.jsonl`, rows with the keys source, instruction and output.

    The same arguments give the same bytes, held-out rows don't depend on `rows`, and neither depends on the questions.
    No two rows in all files have the same instruction.

    Args:
        folder: Where to; made if it isn't there.
        rows: Training rows, divided among the sources as in MathInstruct; each source gets at least MIN_ROWS.
        heldout_per_source: Held-out rows of each source.
        questions_per_source: Lines of each source in `questions.jsonl` for `train-client evaluate`, with the keys
            source, question and answer; none: no such file.
        seed: Which corpus, of all the possible ones.

    Raises:
        DataError: too few rows for 14 sources, or more than a source has different questions.
    """
    sizes = _share_out(rows)
    if heldout_per_source < 0:
        raise DataError(f"heldout_per_source is {heldout_per_source}: give 0 or more")
    if questions_per_source < 0:
        raise DataError(f"questions_per_source is {questions_per_source}: give 0 or more")
    draws = {name: Random(f"{seed}/{name}") for name in SOURCES}
    seen: set[str] = set()
    heldout = [_row(*_new(name, draws[name], seen)) for name in SOURCES for _ in range(heldout_per_source)]
    train = [_row(*_new(name, draws[name], seen)) for name, count in sizes.items() for _ in range(count)]
    Random(f"{seed}/order").shuffle(train)
    # Last, and from streams of their own: rows stay the same whether or not questions are asked for.
    asks = {name: Random(f"{seed}/questions/{name}") for name in SOURCES}
    questions = [_question(*_new(name, asks[name], seen)) for name in SOURCES for _ in range(questions_per_source)]
    files = CorpusFiles(folder / "train.jsonl", folder / "heldout.jsonl", folder / "questions.jsonl", sizes)
    write_rows(files.train, train)
    write_rows(files.heldout, heldout)
    if questions:
        write_rows(files.questions, questions)
    return files


def _share_out(rows: int) -> dict[str, int]:
    """Rows by source: in proportion to the true sizes, but at least MIN_ROWS; the largest source evens out the sum."""
    if rows < MIN_ROWS * len(SOURCES):
        raise DataError(
            f"{rows} rows are too few for {len(SOURCES)} sources: give at least {MIN_ROWS * len(SOURCES)}, "
            f"so that each has {MIN_ROWS}"
        )
    total = sum(source.size for source in SOURCES.values())
    sizes = {name: max(MIN_ROWS, round(rows * source.size / total)) for name, source in SOURCES.items()}
    while missing := rows - sum(sizes.values()):
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] += 1 if missing > 0 else -1
    return sizes


def _new(name: str, draw: Random, seen: set[str]) -> tuple[str, styles.Written]:
    """A source's name, and a text of it whose instruction nobody has seen."""
    source = SOURCES[name]
    for _ in range(_MAX_TRIES):
        problem = draw.choice(source.families)(draw)
        written = source.style(problem, draw)
        if written.instruction not in seen:
            seen.add(written.instruction)
            if name.startswith("data/PoT/"):
                check_program(written.output, written.answer)
            return name, written
    raise DataError(f"{name} has no new question after {_MAX_TRIES} tries: ask for fewer rows")


def _row(name: str, written: styles.Written) -> Row:
    return {"source": name, "instruction": written.instruction, "output": written.output}


def _question(name: str, written: styles.Written) -> Row:
    return {"source": name, "question": written.instruction, "answer": str(written.answer)}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, in a folder that is made if it isn't there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
