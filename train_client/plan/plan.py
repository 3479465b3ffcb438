"""One plan: every arm predicted, what sets the pace, how many selector devices are needed, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from train_client.plan.costs import Costs, Layout
from train_client.plan.predict import Prediction, break_even_price, predict, predict_arms, selectors_needed

PLANNED = "planned"
_MOST_COUNTS = 8
# Weights that a remedy may use are at most so many steps old.
_OLDEST = 20


@dataclass(frozen=True)
class Plan:
    """What is predicted for a layout.

    Attributes:
        costs: Seconds of the pieces.
        layout: The layout that was asked for.
        arms: By name, and the layout's own as `planned`.
        needed: The fewest selector devices with which trainers never wait; None where no number suffices.
        remedy: Where none suffices, the layout with other S and K in which the fewest do, with that number; of these
            the one with the least age of weights, S + K - 1; None where none does.
        break_even_price: Of a selector device, at which a server costs as much as selection inline.
        by_selectors: The layout with other numbers of selector devices.
    """

    costs: Costs
    layout: Layout
    arms: Mapping[str, Prediction]
    needed: int | None
    remedy: Layout | None
    break_even_price: float
    by_selectors: Mapping[int, Prediction]

    @property
    def planned(self) -> Prediction:
        """The prediction for the layout itself."""
        return self.arms[PLANNED]


def make_plan(costs: Costs, layout: Layout) -> Plan:
    """Predict a layout, its alternatives, and what would help."""
    needed = selectors_needed(costs, layout)
    return Plan(
        costs=costs,
        layout=layout,
        arms=predict_arms(costs, layout) | {PLANNED: predict(costs, layout)},
        needed=needed,
        remedy=_remedy(costs, layout) if needed is None else None,
        break_even_price=break_even_price(costs, layout),
        by_selectors={count: predict(costs, layout.with_selectors(count)) for count in _counts(costs, layout, needed)},
    )


def _remedy(costs: Costs, layout: Layout) -> Layout | None:
    best: Layout | None = None
    for age in range(layout.staleness + layout.push_every - 1, _OLDEST + 1):
        for staleness in range(1, age + 1):
            other = replace(layout, staleness=staleness, push_every=age + 1 - staleness, lookahead=None)
            needed = selectors_needed(costs, other)
            if needed and (best is None or needed < best.selectors):
                best = other.with_selectors(needed)
    return best


def _counts(costs: Costs, layout: Layout, needed: int | None) -> list[int]:
    """Numbers of selector devices worth a look: up to somewhat more than needed, the layout's own among them."""
    most = costs.score_parts or costs.large_batch_size
    top = min(most, max(4, layout.selectors, round(1.5 * needed) if needed else 8))
    if top <= _MOST_COUNTS:
        counts = set(range(1, top + 1))
    else:
        counts = {round(top ** (place / (_MOST_COUNTS - 1))) for place in range(_MOST_COUNTS)}
    return sorted(counts | {layout.selectors} | ({needed} if needed else set()))
