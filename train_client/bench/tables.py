"""The result of `bench overlap` as tables, and as sentences that say what they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from train_client.bench.arms import DEFAULT, FLOOR, INLINE, LARGE_BATCH

_MIB = 2**20


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print everything that a person wants to know of a result."""
    console.print(arms_table(result))
    console.print(phases_table(result))
    for line in findings(result):
        console.print("•", line, highlight=False)
    if result["sweep"]:
        console.print(sweep_table(result["sweep"]))


def arms_table(result: Mapping[str, Any]) -> Table:
    """A row for each arm."""
    r, b, devices = result["sub_batch_size"], result["large_batch_size"], result["devices"]
    table = Table(
        title=f"A step with r = {r} of b = {b}: trainer on {devices['trainer']}, selector on {devices['selector']}",
        caption=f"medians of {result['rounds']} rounds of {result['steps_per_round']} steps each; all arms took turns",
    )
    table.add_column("arm")
    for heading in (
        "step, s", "p95", "waits", "to r rows", "to b rows", "device-s",
        "trainer MiB", "selector MiB", "wire KiB", "plan",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for name, arm in result["arms"].items():
        table.add_row(
            arm["title"],
            f"{arm['step_seconds']:.3f}",
            f"{arm['step_seconds_p95']:.3f}",
            f"{arm['wait_fraction']:.1%}",
            f"{arm['ratio_to_floor']['median']:.2f}",
            f"{arm['ratio_to_large_batch']['median']:.2f}",
            f"{arm['device_seconds']:.3f}",
            _mib(arm["trainer_peak_bytes"]),
            _mib(arm["selector_peak_bytes"]),
            f"{arm['wire_bytes'] / 1024:,.0f}",
            f"{result['plan']['difference'][name]:+.0%}",
            style="bold" if name == DEFAULT else None,
        )
    return table


def phases_table(result: Mapping[str, Any]) -> Table:
    """What a selection is made of."""
    total = result["selector_seconds"]
    table = Table(title=f"A selection takes {total:.3f} s of the selector while the trainer trains")
    for phase in result["selector_phases"]:
        table.add_column(phase, justify="right")
    table.add_row(*(f"{seconds * 1000:.1f} ms" for seconds in result["selector_phases"].values()))
    return table


def sweep_table(sweep: Mapping[str, Mapping[str, Any]]) -> Table:
    """The default arm by r / b."""
    table = Table(title="The same sub-batch out of larger and larger batches")
    table.add_column("r / b")
    headings = ("r rows, s", "selection, s", "server, S = 1", "selected in the trainer", "all b rows", "bound")
    for heading in headings:
        table.add_column(heading, justify="right")
    for ratio, each in sweep.items():
        arms = each["arms"]
        table.add_row(
            ratio,
            f"{arms[FLOOR]['step_seconds']:.3f}",
            f"{each['selector_seconds']:.3f}",
            *(f"{arms[name]['step_seconds']:.3f}" for name in (DEFAULT, INLINE, LARGE_BATCH)),
            _spread(each["bound"]["ratio"]),
        )
    return table


def findings(result: Mapping[str, Any]) -> Iterator[str]:
    """What was asked, and the answer, a sentence each."""
    yield _bound(result)
    yield _pace(result)
    yield _memory(result)
    yield _plan(result)
    yield _devices(result)
    same, of = result["floor_replays"]["same"], result["floor_replays"]["of"]
    yield f"the floor trained on the rows that S = 1 selected in {same} of {of} steps"


def _bound(result: Mapping[str, Any]) -> str:
    bound = result["bound"]
    of = "max(step on r rows, selection)"
    if bound["counts_push"]:
        of = "snapshot + max(step on r rows, selection with its upload)"
    verdict = {"holds": "holds", "fails": "does not hold", "open": "is not decided: measure more rounds"}
    return (
        f"step with S = 1 ≤ {bound['limit']} × {of} {verdict[bound['verdict']]}: "
        f"the ratio is {_spread(bound['ratio'])} of {bound['allowed_seconds']:.3f} s"
    )


def _pace(result: Mapping[str, Any]) -> str:
    ratio, waits = result["selector_to_floor"], result["arms"][DEFAULT]["wait_fraction"]
    if ratio["median"] <= 1:
        return (
            f"the selector keeps up: a selection takes {_spread(ratio)} of a step on r rows, "
            f"the trainer waits {waits:.1%} of its time"
        )
    return (
        f"the selector can't keep up: a selection takes {_spread(ratio)} times a step on r rows, so that the trainer "
        f"waits {waits:.1%} of its time; it takes {ratio['median']:.2f} times the selector's speed, or a smaller b"
    )


def _memory(result: Mapping[str, Any]) -> str:
    memory = result["memory"]
    if memory["default_to_floor"] is None or memory["large_batch_to_default"] is None:
        return "memory: this system doesn't tell what a process holds"
    return (
        f"memory without gradient accumulation: with S = 1 the trainer peaks at {memory['default_to_floor']:.3f} of "
        f"the floor's peak (goal 1.05); all b rows take {memory['large_batch_to_default']:.2f} times its peak "
        f"(the paper: {memory['paper']:.0f} times)"
    )


def _plan(result: Mapping[str, Any]) -> str:
    plan = result["plan"]
    measured, expected = plan["margin_measured"], plan["margin_expected"]
    off = expected / measured["median"] - 1
    return (
        f"selecting in the trainer takes {_spread(measured)} times the step of S = 1; train-client plan expects "
        f"{expected:.3f} ({off:+.1%}, goal within 15 %)"
    )


def _devices(result: Mapping[str, Any]) -> str:
    cost = {name: result["arms"][name]["device_seconds"] for name in (DEFAULT, INLINE, LARGE_BATCH)}
    best = min(cost, key=lambda name: cost[name])
    verdict = "the server is the cheapest" if best == DEFAULT else "the server loses"
    return (
        f"per device, one selector for one trainer, {verdict}: {cost[DEFAULT]:.3f} device-seconds a step, "
        f"{cost[INLINE]:.3f} with selection in the trainer, {cost[LARGE_BATCH]:.3f} on all b rows"
    )


def _spread(estimate: Mapping[str, float]) -> str:
    low, high, confidence = (estimate[key] for key in ("low", "high", "confidence"))
    return f"{estimate['median']:.3f} ({confidence:.0%} interval {low:.3f} to {high:.3f})"


def _mib(size: int | None) -> str:
    return "–" if size is None else f"{size / _MIB:,.0f}"
