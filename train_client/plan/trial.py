"""A plan's simulation: its layout, the arms without a server, and other numbers of selector devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train_client.plan.costs import Noise
from train_client.plan.observed import Array, Observed, observe, observe_alone, step_times, uneven_fraction
from train_client.plan.plan import PLANNED, Plan
from train_client.plan.simulate import Played, simulate, simulate_alone


@dataclass(frozen=True, eq=False)
class Trial:
    """What a simulation of a plan shows.

    Attributes:
        played: Every event of the planned layout.
        arms: By name: the arms without a server, and the layout as `planned`.
        steps: Step times of these, float64 [steps] of all runs together.
        by_selectors: The layout with other numbers of selector devices.
        uneven_fraction: The part of its time for which the first run's average rank waits for its slowest.
    """

    played: Played
    arms: Mapping[str, Observed]
    steps: Mapping[str, Array]
    by_selectors: Mapping[int, Observed]
    uneven_fraction: float


def simulate_plan(plan: Plan, noise: Noise, *, num_steps: int, seed: int) -> Trial:
    """Play a plan and its alternatives; all see the same noise on the trainers.

    Args:
        plan: The plan.
        noise: Of every piece.
        num_steps: Steps of every run.
        seed: Of the noise.
    """

    def play(selectors: int) -> Played:
        layout = plan.layout.with_selectors(selectors)
        return simulate(plan.costs, layout, noise, num_steps=num_steps, seed=seed)

    servers = plan.layout.servers
    played = play(plan.layout.selectors)
    alone = simulate_alone(plan.costs, plan.layout, noise, num_steps=num_steps, seed=seed)
    return Trial(
        played=played,
        arms={name: observe_alone(steps) for name, steps in alone.items()}
        | {PLANNED: observe(played, servers=servers)},
        steps=alone | {PLANNED: step_times(played).ravel()},
        by_selectors={count: observe(play(count), servers=servers) for count in plan.by_selectors},
        uneven_fraction=uneven_fraction(played),
    )
