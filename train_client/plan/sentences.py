"""A plan in sentences: what sets the pace and by how much, what would help, what it costs, what jitter changes."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from train_client.plan.event_graph import Pieces
from train_client.plan.plan import Plan
from train_client.plan.table import counted, duration

if TYPE_CHECKING:
    from train_client.plan.trial import Trial

_PIECES = tuple(field.name for field in fields(Pieces))
# Of their time; what trainers wait that wait for jitter alone.
_HARDLY = 0.01
_SUBJECTS = {
    "trainers": "The trainers set the pace",
    "selector": "The selector sets the pace",
    "upload": "The upload of weights sets the pace",
    "round trip": "The round trip of the weights, through upload, selection and training, sets the pace",
    "lookahead": "The lookahead sets the pace: the server may not work further ahead of the ranks",
}


def sentences(plan: Plan) -> list[str]:
    """What sets the pace and by how much, what would help, and what it costs."""
    return [_pace(plan), _selectors(plan), _price(plan)]


def trial_sentence(plan: Plan, trial: Trial) -> str:
    """What jitter and stragglers change."""
    seen = trial.by_selectors[plan.layout.selectors]
    enough = [count for count, each in trial.by_selectors.items() if each.wait_fraction < _HARDLY]
    devices = f"from {counted(enough[0], 'device')} on" if enough else "with none of these numbers of devices"
    text = f"Under jitter trainers wait {seen.wait_fraction:.1%} of the time, and less than {_HARDLY:.0%} {devices}"
    if plan.layout.trainers == 1:
        return f"{text}."
    return f"{text}; beside that, an average rank waits {trial.uneven_fraction:.1%} of it for the slowest rank."


def _pace(plan: Plan) -> str:
    planned, floor = plan.planned, plan.arms["floor"]
    text = f"{_SUBJECTS[planned.bottleneck]}: {duration(planned.step_seconds)} a step"
    if planned.wait_fraction > 0:
        pieces = " + ".join(f"{name} {duration(planned.pieces[name])}" for name in _PIECES if planned.pieces.get(name))
        if planned.bottleneck == "selector" and plan.layout.runs_per_server > 1:
            pieces += f" for {plan.layout.runs_per_server} runs"
        return (
            f"{text} ({pieces}), {planned.step_seconds / planned.busy_seconds - 1:.0%} more than trainers need that "
            f"never wait ({duration(planned.busy_seconds)})."
        )
    over = planned.step_seconds / floor.step_seconds - 1
    return f"{text}, {over:.1%} more than without selection; the server selects {planned.selector_fraction:.0%} of it."


def _selectors(plan: Plan) -> str:
    if plan.needed:
        verb = "is" if plan.needed == 1 else "are"
        each = " in each server" if plan.layout.servers > 1 else ""
        return f"{counted(plan.needed, 'selector device')}{each} {verb} enough for trainers never to wait."
    text = "No number of selector devices lets the trainers go without waiting"
    if other := plan.remedy:
        return (
            f"{text} at S = {plan.layout.staleness}, K = {plan.layout.push_every}; "
            f"{counted(other.selectors, 'device')} would with S = {other.staleness}, K = {other.push_every}."
        )
    return f"{text}: what they don't shorten takes too long, the upload, or the runs' loads and serial parts."


def _price(plan: Plan) -> str:
    price = plan.break_even_price
    if price <= 0:
        return "Selection inside the trainers is cheaper per step, even if selector devices are free."
    cheaper = "the server" if plan.layout.selector_price < price else "selection inside the trainers"
    return (
        f"Per step the server costs as much as selection inside the trainers where a selector device costs "
        f"{price:.2f} of a training device; at {plan.layout.selector_price:g}, {cheaper} is cheaper."
    )
