"""`train-client experiment --list`: groups, arms, what they change, and how many runs that makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.config import Config
from train_client.experiment.arms import ARMS, GROUPS, find_arms
from train_client.experiment.plan import merge_equal


def print_arms(console: Console, base: Config, names: Sequence[str]) -> None:
    """Print groups, arms and what they change."""
    chosen = find_arms(names)
    groups = Table("group", "question", "arms", title="groups, names for --arms")
    for group, question in GROUPS.items():
        groups.add_row(group, question, str(sum(group in arm.groups for arm in ARMS.values())))
    arms = Table("arm", "groups", "changes", title="arms")
    for arm in chosen:
        changes = [f"{key.removeprefix('selection.')} = {value}" for key, value in arm.overrides.items()]
        changes += [f"data: {arm.variant}"] if arm.variant else []
        arms.add_row(arm.name, ", ".join(arm.groups), "\n".join(changes))
    console.print(groups)
    console.print(arms)
    distinct = merge_equal(chosen, {arm.variant: base for arm in chosen} | {"": base}, out=Path())
    seeds = len(base.experiment.seeds)
    console.print(
        f"{len(distinct)} different arms of these {len(chosen)} × {seeds} seeds = {len(distinct) * seeds} runs"
        f" of {base.run.num_steps} steps, some of twice as many",
        highlight=False,
    )
