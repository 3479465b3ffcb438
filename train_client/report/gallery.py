"""Some large batches: what one arm picked and what it passed over, and what others made of the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train_client.experiment.summary import ArmSummary
from train_client.report.canvas import Key
from train_client.report.curves import keys_of
from train_client.report.evidence import Evidence, short_source
from train_client.report.looks import look_of

_MOST_BATCHES, _MOST_OTHERS = 3, 3
_SHORT = 150


@dataclass(frozen=True)
class Mark:
    """An arm that picked a row."""

    title: str
    color: str
    outline: str
    weight: float


@dataclass(frozen=True)
class Item:
    """A row of a large batch.

    Attributes:
        source: Where it came from.
        short: The beginning of its question.
        question, answer: All of both.
        weight: With which the arm trained on it; 0 where it was passed over.
        others: Arms that picked it too.
    """

    source: str
    short: str
    question: str
    answer: str
    weight: float
    others: tuple[Mark, ...]


@dataclass(frozen=True)
class Batch:
    """A large batch."""

    step: int
    arm: str
    picked: Sequence[Item]
    passed_over: Sequence[Item]
    others: Sequence[Key]


def gallery(evidence: Evidence) -> list[Batch]:
    """The batches of the best selecting arm, or of any other that kept some."""
    candidates = [*filter(None, [evidence.best]), *evidence.selecting, *evidence.summary.arms]
    arm = next((arm for arm in candidates if _kept(evidence, arm)), None)
    if arm is None:
        return []
    others = {other.name: _kept(evidence, other) for other in evidence.selecting if other is not arm}
    return [_batch(evidence, arm, batch, others) for batch in _kept(evidence, arm)[:_MOST_BATCHES]]


def _kept(evidence: Evidence, arm: ArmSummary) -> list[Mapping[str, Any]]:
    return next((run["gallery"] for run in evidence.runs(arm.name).values() if run["gallery"]), [])


def _batch(
    evidence: Evidence,
    arm: ArmSummary,
    batch: Mapping[str, Any],
    others: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Batch:
    rows = batch["rows"]
    numbers = [row["row"] for row in rows]
    same = {}
    for name, batches in others.items():
        for other in batches:
            # Only the same draw can be compared row by row.
            if other["step"] == batch["step"] and [row["row"] for row in other["rows"]] == numbers:
                same[name] = other["rows"]
    shown = [other for other in evidence.selecting if other.name in same][:_MOST_OTHERS]
    items = []
    for i, row in enumerate(rows):
        marks = tuple(_mark(other, same[other.name][i]) for other in shown if same[other.name][i]["picked"])
        items.append((row["picked"], _item(row, marks)))
    picked = sorted((item for chosen, item in items if chosen), key=lambda item: -item.weight)
    passed_over = [item for chosen, item in items if not chosen]
    return Batch(batch["step"], arm.title, picked, passed_over, keys_of(shown))


def _mark(arm: ArmSummary, row: Mapping[str, Any]) -> Mark:
    look = look_of(arm.name)
    return Mark(arm.title, look.css_color, look.outline, row["weight"])


def _item(row: Mapping[str, Any], others: tuple[Mark, ...]) -> Item:
    question = str(row["instruction"])
    line = " ".join(question.split())
    short = line if len(line) <= _SHORT else line[: _SHORT - 1].rsplit(" ", 1)[0] + " …"
    return Item(short_source(str(row["source"])), short, question, str(row["output"]), float(row["weight"]), others)
