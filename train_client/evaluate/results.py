"""The folder of an evaluation: settings.json, answers.jsonl (a line a question), scores.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.table import Table

from shared.errors import ConfigError, DataError

ANSWERS, SCORES, SETTINGS = "answers.jsonl", "scores.json", "settings.json"
Row = dict[str, Any]
Key = tuple[str, int]


def open_folder(out: Path, settings: dict[str, Any]) -> Answers:
    """Start an evaluation in `out`, or go on with the one that is there.

    Raises:
        ConfigError: `out` can't be written, or what is there was answered with other settings.
        DataError: what is there can't be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        answers = out / ANSWERS
        rows = _read_rows(answers)
        if rows:
            _check_settings(out, settings)
        (out / SCORES).unlink(missing_ok=True)
        write_json(out / SETTINGS, settings)
        return Answers(answers, rows)
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written ({error.strerror}): give another folder") from None


class Answers:
    """answers.jsonl: lines are appended as they come, and put in order at the end."""

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        """The file at `path`, which holds `rows` and perhaps half a line that a killed process left."""
        self._path = path
        self.rows: dict[Key, Row] = {(row["set"], row["number"]): row for row in rows}
        self._rewrite(self.rows.values())
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; a killed process loses none of them."""
        for row in rows:
            self.rows[row["set"], row["number"]] = row
            self._file.write(_as_line(row))
        self._file.flush()

    def sort(self, order: Sequence[Key]) -> list[Row]:
        """Put all rows in order, in the file too, and give them."""
        rows = [self.rows[key] for key in order]
        self._file.close()
        self._rewrite(rows)
        return rows

    def _rewrite(self, rows: Iterable[Row]) -> None:
        part = self._path.with_suffix(".part")
        part.write_text("".join(map(_as_line, rows)), encoding="utf-8")
        os.replace(part, self._path)


def make_scores(rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """What scores.json holds.

    A set's `standard_error` is the binomial one, sqrt(p (1 - p) / n): how far the accuracy would scatter over other
    questions of the same kind. `average` is the mean over sets.
    """
    sets = {name: _score([row for row in rows if row["set"] == name]) for name in dict.fromkeys(r["set"] for r in rows)}
    by_source: dict[str, dict[str, int]] = {}
    for row in rows:
        source = by_source.setdefault(row["source"], {"correct": 0, "total": 0})
        source["correct"] += row["correct"]
        source["total"] += 1
    return {
        "sets": sets,
        "average": sum(score["accuracy"] for score in sets.values()) / len(sets),
        "by_source": dict(sorted(by_source.items())),
        "settings": settings,
    }


def score_table(scores: dict[str, Any]) -> Table:
    """The scores for a reader: a line for each set."""
    table = Table(title="right answers")
    for column in ("set", "right", "accuracy ± s.e."):
        table.add_column(column, no_wrap=True, justify="left" if column == "set" else "right")
    for column in ("programs\nfailed", "fell\nback", "cut\nshort", "no\nanswer"):
        table.add_column(column, justify="right")
    for name, score in scores["sets"].items():
        table.add_row(
            name,
            f"{score['correct']} of {score['total']}",
            f"{score['accuracy']:.1%} ± {score['standard_error']:.1%}",
            f"{score['programs_failed']} of {score['programs']}",
            *(str(score[key]) for key in ("fell_back", "cut_short", "unanswered")),
        )
    if len(scores["sets"]) > 1:
        table.add_section()
        table.add_row("mean", "", f"{scores['average']:.1%}", style="bold")
    return table


def source_table(scores: dict[str, Any]) -> Table | None:
    """Accuracy by source, where questions say their source."""
    if scores["by_source"].keys() <= scores["sets"].keys():
        return None
    table = Table(title="by source")
    table.add_column("source")
    for column in ("right", "accuracy"):
        table.add_column(column, justify="right")
    for name, score in scores["by_source"].items():
        correct, total = score["correct"], score["total"]
        table.add_row(name, f"{correct} of {total}", f"{correct / total:.1%}")
    return table


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _score(rows: Sequence[Row]) -> dict[str, Any]:
    total, correct = len(rows), sum(row["correct"] for row in rows)
    accuracy = correct / total
    attempts = [attempt for row in rows for attempt in row["attempts"]]
    programs = [attempt for attempt in attempts if attempt["program"]]
    return {
        "correct": correct,
        "total": total,
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / total),
        "programs": len(programs),
        "programs_failed": sum(bool(attempt["error"]) for attempt in programs),
        "fell_back": sum(row["fell_back"] for row in rows),
        "cut_short": sum(not row["attempts"][-1]["ended"] for row in rows),
        "unanswered": sum(not row["answer"] for row in rows),
    }


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line's end is half a line
        try:
            row = json.loads(line)
            row["set"], row["number"], row["correct"], row["attempts"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path} line {number} is not an answer of an evaluation: give another --out, or delete the file"
            ) from None
        rows.append(row)
    return rows


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    try:
        before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        differing = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"{out} has answers and no {SETTINGS} that says how they were asked: give another --out, or delete it"
        ) from None
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in differing)
        raise ConfigError(
            f"--out {out} has answers that were asked with other settings ({changes}): give another folder, or "
            f"delete {out / ANSWERS}"
        )


def _as_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
