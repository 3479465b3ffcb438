"""A plan in tables: its costs, its arms, other numbers of selector devices, and a benchmark beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from rich.table import Table

from train_client.plan.costs import Costs, Layout
from train_client.plan.plan import PLANNED, Plan
from train_client.plan.predict import Prediction

if TYPE_CHECKING:
    from train_client.plan.observed import Observed

_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_COST_TITLES = {
    "train_seconds": "train on r rows, one training device",
    "train_large_seconds": "train on b rows, one training device",
    "score_seconds": "score b rows, one selector device",
    "inline_score_seconds": "score b rows, one training device",
    "fixed_seconds": "every step beside: optimizer, collate, all-reduce",
    "serial_seconds": "every selection beside: draw, pick, journal",
    "snapshot_seconds": "snapshot of the trained weights",
    "upload_seconds": "upload, until durable",
    "load_seconds": "load before a selection",
    "deliver_seconds": "deliver to every rank",
}
_TITLES = {
    "floor": "train on r rows, no selection",
    "large_batch": "train on all b rows",
    "inline": "selection inside the trainers",
}


def duration(seconds: float) -> str:
    """Seconds with three digits, in a unit that fits."""
    if seconds == 0:
        return "0 s"
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    value = seconds / size
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def title(arm: str, layout: Layout) -> str:
    """An arm in words."""
    if arm == PLANNED:
        return f"this plan: S = {layout.staleness}, K = {layout.push_every}"
    if match := re.fullmatch(r"staleness_(\d+)", arm):
        return f"server, S = {match[1]}, K = {layout.push_every}"
    if match := re.fullmatch(r"push_every_(\d+)", arm):
        return f"server, S = {layout.staleness}, K = {match[1]}"
    return _TITLES[arm]


def cost_table(costs: Costs, origins: Mapping[str, str]) -> Table:
    """What each piece takes, and where the number comes from."""
    table = Table(title=f"Costs: r = {costs.sub_batch_size} rows selected from b = {costs.large_batch_size}")
    table.add_column("piece")
    table.add_column("time", justify="right")
    table.add_column("from")
    for name in (field.name for field in fields(costs) if field.name in _COST_TITLES):
        if seconds := getattr(costs, name):
            table.add_row(_COST_TITLES[name], duration(seconds), origins[name])
    return table


def arm_table(plan: Plan, simulated: Mapping[str, Observed] | None) -> Table:
    """A line for each arm; devices and price are the layout's."""
    floor, large, inline = (plan.arms[name] for name in ("floor", "large_batch", "inline"))
    table = Table(
        title=who(plan.layout),
        caption="Step times are means; hours are those of a training device, for 1,000 steps of one run.",
    )
    for column in ("arm", "step", "× floor", "waits", "set by", "hours", "÷ all b", "÷ inline"):
        table.add_column(column, justify="left" if column in ("arm", "set by") else "right")
    if simulated:
        for column in ("simulated", "p95", "waits"):
            table.add_column(column, justify="right")
    for name, arm in plan.arms.items():
        cells = [
            title(name, plan.layout),
            duration(arm.step_seconds),
            f"{arm.step_seconds / floor.step_seconds:.2f}",
            f"{arm.wait_fraction:.0%}",
            arm.bottleneck,
            f"{arm.device_seconds / 3.6:.3g}",
            f"{arm.device_seconds / large.device_seconds:.2f}",
            f"{arm.device_seconds / inline.device_seconds:.2f}",
        ]
        if simulated:
            seen = simulated.get(name)
            cells += (
                [duration(seen.step_seconds_mean), duration(seen.step_seconds_p95), f"{seen.wait_fraction:.0%}"]
                if seen
                else ["", "", ""]
            )
        table.add_row(*cells, style="bold" if name == PLANNED else "")
    return table


def selector_table(plan: Plan, simulated: Mapping[int, Observed] | None) -> Table:
    """The layout with other numbers of selector devices."""
    table = Table(title="Selector devices of each server" if plan.layout.servers > 1 else "Selector devices")
    for column in ("devices", "step", "trainers wait", "server selects", "hours"):
        table.add_column(column, justify="right")
    if simulated:
        for column in ("simulated", "trainers wait"):
            table.add_column(column, justify="right")
    for count, arm in plan.by_selectors.items():
        cells = [
            str(count),
            duration(arm.step_seconds),
            f"{arm.wait_fraction:.0%}",
            f"{arm.selector_fraction:.0%}",
            f"{arm.device_seconds / 3.6:.3g}",
        ]
        if simulated:
            cells += [duration(simulated[count].step_seconds_mean), f"{simulated[count].wait_fraction:.0%}"]
        table.add_row(*cells, style="bold" if count == plan.layout.selectors else "")
    return table


def comparison_table(predicted: Mapping[str, Prediction], measured: Mapping[str, Mapping[str, float]]) -> Table:
    """A benchmark's arms, predicted and measured."""
    table = Table(title="Predicted and measured")
    for column in ("arm", "predicted", "measured", "difference", "waits predicted", "waits measured"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, arm in predicted.items():
        seen = measured[name]
        table.add_row(
            title(name, Layout()),
            duration(arm.step_seconds),
            duration(seen["step_seconds"]),
            f"{arm.step_seconds / seen['step_seconds'] - 1:+.1%}",
            f"{arm.wait_fraction:.1%}",
            f"{seen['wait_fraction']:.1%}",
        )
    return table


def who(layout: Layout) -> str:
    """The devices of a layout in words."""
    each = f"{counted(layout.trainers, 'training device')} " + ("each" if layout.runs > 1 else "")
    servers = f" in each of {layout.servers} servers" if layout.servers > 1 else ""
    runs = f"{layout.runs} runs of " if layout.runs > 1 else ""
    return f"{runs}{each.strip()}, {counted(layout.selectors, 'selector device')}{servers}"


def counted(number: int, noun: str) -> str:
    """A number and what there is so many of."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
