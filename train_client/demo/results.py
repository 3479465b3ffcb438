"""What the demo's arms left on disk → the summary, the timeline, the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from shared.config import Config
from shared.dataset import Store
from shared.sampler import draw_large_batch
from train_client.demo.timeline import Span

_SELECTOR_PHASES = ("load", "draw", "score", "pick", "journal")
_TRAINER_PHASES = ("wait", "prepare", "train", "optimizer", "push")


@dataclass(frozen=True)
class Arm:
    """One trained arm: a line per step for each rank, and held-out losses along the way."""

    title: str
    ranks: list[list[dict[str, Any]]]
    heldout: list[dict[str, Any]]

    @classmethod
    def read(cls, title: str, output: Path) -> Arm:
        """What `train-client train` wrote to `output`."""
        steps = sorted(output.glob("steps-rank*.jsonl"), key=lambda p: int(p.stem.removeprefix("steps-rank")))
        return cls(title, [_read_jsonl(path) for path in steps], _read_jsonl(output / "heldout.jsonl"))

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Held-out loss by step, the mean over sources."""
        return [(row["step"], row["mean"]) for row in self.heldout]

    @property
    def final_loss(self) -> dict[str, float]:
        """Held-out loss by source at the end."""
        return dict(self.heldout[-1]["by_source"])


def wait_fraction(arm: Arm, *, warm_up: int) -> float:
    """Σ time waiting for selections / Σ step time, of the worst rank, after the first `warm_up` steps."""
    fractions = (
        sum(row["wait_seconds"] for row in rank[warm_up:]) / sum(row["step_seconds"] for row in rank[warm_up:])
        for rank in arm.ranks
    )
    return float(max(fractions))


def phase_seconds(arm: Arm, *, warm_up: int) -> dict[str, float]:
    """Median seconds of each phase of a step, the selector's as `selector_*`; the trainers' are of rank 0."""
    rows = arm.ranks[0][warm_up:]
    phases = {phase: [row[f"{phase}_seconds"] for row in rows] for phase in (*_TRAINER_PHASES, "step")}
    selector = {
        f"selector_{phase}": [row["selector"][f"{phase}_seconds"] for row in rows] for phase in _SELECTOR_PHASES
    }
    return {name: float(np.median(values)) for name, values in (phases | selector).items()}


def timeline(arm: Arm) -> list[Span]:
    """Every phase of the selector and of every rank, in seconds since the first of them began."""
    spans: list[tuple[str, str, int, float, float]] = []
    for rank, rows in enumerate(arm.ranks):
        for row in rows:
            if rank == 0:
                at = row["selector"]["started_unix_ns"] / 1e9
                spans += _phases("selector", row["step"], at, row["selector"], _SELECTOR_PHASES)
            spans += _phases(f"rank {rank}", row["step"], row["wait_started_ns"] / 1e9, row, _TRAINER_PHASES)
    origin = min(start for _, _, _, start, _ in spans)
    return [Span(lane, phase, step, start - origin, end - origin) for lane, phase, step, start, end in spans]


def _phases(
    lane: str, step: int, at: float, row: dict[str, Any], phases: Sequence[str]
) -> list[tuple[str, str, int, float, float]]:
    spans = []
    for phase in phases:
        end = at + row[f"{phase}_seconds"]
        spans.append((lane, phase, step, at, end))
        at = end
    return spans


def source_shares(store: Store, config: Config, arm: Arm) -> dict[str, tuple[float, float, float]]:
    """Each source's share of the file, of all large batches, and of all sub-batches."""
    sizes = store.source_rows
    large = np.zeros(len(sizes))
    for step in range(config.run.num_steps):
        drawn = draw_large_batch(sizes, config.selection, seed=config.run.seed, step=step)
        large += np.bincount(store.sources_of(drawn), minlength=len(sizes))
    trained = np.array([number for rank in arm.ranks for row in rank for number in row["rows"]], dtype=np.int64)
    sub = np.bincount(store.sources_of(trained), minlength=len(sizes))
    shares = zip(np.array(sizes) / len(store), large / large.sum(), sub / sub.sum(), strict=True)
    return {name: (float(a), float(b), float(c)) for name, (a, b, c) in zip(store.source_names, shares, strict=True)}


def loss_table(arms: Sequence[Arm]) -> Table:
    """Held-out loss by source, an arm a column."""
    table = Table(title="held-out loss after training, by source")
    table.add_column("source")
    for arm in arms:
        table.add_column(arm.title, justify="right")
    for source in arms[0].final_loss:
        table.add_row(source, *(f"{arm.final_loss[source]:.3f}" for arm in arms))
    table.add_section()
    table.add_row("mean over sources", *(f"{arm.curve[-1][1]:.3f}" for arm in arms), style="bold")
    return table


def phase_table(phases: dict[str, float], waited: float) -> Table:
    """Median seconds of each phase: the selector's beside the trainers', since they run at the same time."""
    table = Table(title=f"median seconds per phase of a step; trainers waited {waited:.1%} of the time")
    for column in ("selector", "seconds", "rank 0", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    selector = [(name, phases[f"selector_{name}"]) for name in _SELECTOR_PHASES]
    trainer = [(name, phases[name]) for name in _TRAINER_PHASES]
    for (left, left_s), (right, right_s) in zip(selector, trainer, strict=True):
        table.add_row(left, f"{left_s:.3f}", right, f"{right_s:.3f}")
    table.add_section()
    table.add_row("all", f"{sum(s for _, s in selector):.3f}", "all", f"{phases['step']:.3f}", style="bold")
    return table


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
