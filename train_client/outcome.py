"""What a training job left in its output folder, read back: steps of every rank, losses, phases, a timeline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

SELECTOR_PHASES = ("load", "draw", "score", "pick", "journal")
TRAINER_PHASES = ("wait", "prepare", "train", "optimizer", "push")
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Span:
    """One phase of one step on one lane, in seconds on a clock that all lanes share."""

    lane: str
    phase: str
    step: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Outcome:
    """A line per step for each rank, held-out losses and gradient checks along the way, facts of the run."""

    ranks: list[list[dict[str, Any]]]
    heldout: list[dict[str, Any]]
    gradient: list[dict[str, Any]]
    facts: dict[str, Any]

    @classmethod
    def read(cls, output: Path) -> Outcome:
        """What `train-client train` wrote to `output`; a part that it didn't write is empty."""
        steps = sorted(output.glob("steps-rank*.jsonl"), key=lambda p: int(p.stem.removeprefix("steps-rank")))
        facts = output / RUN_FILE
        return cls(
            ranks=[_read_jsonl(path) for path in steps],
            heldout=_read_jsonl(output / "heldout.jsonl"),
            gradient=_read_jsonl(output / "gradient.jsonl"),
            facts=json.loads(facts.read_text()) if facts.exists() else {},
        )


def wait_fraction(ranks: Sequence[Sequence[dict[str, Any]]], *, warm_up: int) -> float:
    """Σ time waiting for selections / Σ step time, of the worst rank, after the first `warm_up` steps."""
    fractions = (
        sum(row["wait_seconds"] for row in rank[warm_up:]) / sum(row["step_seconds"] for row in rank[warm_up:])
        for rank in ranks
    )
    return float(max(fractions))


def phase_seconds(ranks: Sequence[Sequence[dict[str, Any]]], *, warm_up: int) -> dict[str, float]:
    """Median seconds of each phase of a step after the first `warm_up`, the selector's as `selector_*`; of rank 0."""
    rows = ranks[0][warm_up:]
    phases = {phase: [row[f"{phase}_seconds"] for row in rows] for phase in (*TRAINER_PHASES, "step")}
    selector = {f"selector_{phase}": [row["selector"][f"{phase}_seconds"] for row in rows] for phase in SELECTOR_PHASES}
    return {name: float(np.median(values)) for name, values in (phases | selector).items()}


def timeline(ranks: Sequence[Sequence[dict[str, Any]]]) -> list[Span]:
    """Every phase of the selector and of every rank, in seconds since the first of them began."""
    spans: list[tuple[str, str, int, float, float]] = []
    for rank, rows in enumerate(ranks):
        for row in rows:
            if rank == 0:
                at = row["selector"]["started_unix_ns"] / 1e9
                spans += _phases("selector", row["step"], at, row["selector"], SELECTOR_PHASES)
            spans += _phases(f"rank {rank}", row["step"], row["wait_started_ns"] / 1e9, row, TRAINER_PHASES)
    origin = min(start for _, _, _, start, _ in spans)
    return [Span(lane, phase, step, start - origin, end - origin) for lane, phase, step, start, end in spans]


def clip(spans: Sequence[Span], start: float, end: float) -> Iterator[Span]:
    """The parts of spans inside a window, on a clock that starts with it."""
    for span in spans:
        left, right = max(span.start_s, start), min(span.end_s, end)
        if left < right:
            yield replace(span, start_s=left - start, end_s=right - start)


def _phases(
    lane: str, step: int, at: float, row: dict[str, Any], phases: Sequence[str]
) -> list[tuple[str, str, int, float, float]]:
    spans = []
    for phase in phases:
        end = at + row[f"{phase}_seconds"]
        spans.append((lane, phase, step, at, end))
        at = end
    return spans


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
