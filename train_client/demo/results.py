"""What the demo's arms left on disk → the summary and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from shared.config import Config
from shared.dataset import Store
from shared.sampler import draw_large_batch
from train_client.outcome import SELECTOR_PHASES, TRAINER_PHASES, Outcome


@dataclass(frozen=True)
class Arm:
    """One trained arm: a line per step for each rank, and held-out losses along the way."""

    title: str
    ranks: list[list[dict[str, Any]]]
    heldout: list[dict[str, Any]]

    @classmethod
    def read(cls, title: str, output: Path) -> Arm:
        """What `train-client train` wrote to `output`."""
        outcome = Outcome.read(output)
        return cls(title, outcome.ranks, outcome.heldout)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Held-out loss by step, the mean over sources."""
        return [(row["step"], row["balanced"]) for row in self.heldout]

    @property
    def final_loss(self) -> dict[str, float]:
        """Held-out loss by source at the end."""
        return dict(self.heldout[-1]["by_source"])


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
    selector = [(name, phases[f"selector_{name}"]) for name in SELECTOR_PHASES]
    trainer = [(name, phases[name]) for name in TRAINER_PHASES]
    for (left, left_s), (right, right_s) in zip(selector, trainer, strict=True):
        table.add_row(left, f"{left_s:.3f}", right, f"{right_s:.3f}")
    table.add_section()
    table.add_row("all", f"{sum(s for _, s in selector):.3f}", "all", f"{phases['step']:.3f}", style="bold")
    return table
