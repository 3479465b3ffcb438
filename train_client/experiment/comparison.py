"""An arm against random rows: at equal steps, and at equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from train_client.experiment.measures import Run, curve, measures
from train_client.experiment.statistics import Difference, Share, along, between, paired_difference, share_closed

Runs = Mapping[str, Mapping[int, Run]]
_SHARED = {"balanced": True, "natural": True, "accuracy": False}  # measure → whether smaller is better
_COSTS = ("row_cost", "busy", "held")


@dataclass(frozen=True)
class EqualCost:
    """An arm's balanced loss less that of random rows for which as much was spent.

    Random rows could have spent as much in two ways, of which the one with the lower mean loss counts: a run of a size
    between two whole runs, or the dearer of these, stopped early. The second has a learning rate that its schedule
    hasn't brought down yet, which matters far from its end.

    Attributes:
        measure: What is equal: `row_cost`, `busy` or `held` device-seconds.
        references: The cheap random arm, and the dear one: more rows a step, or more steps.
        stopped: Whether the dear one, stopped early, is what counts.
        costs: Of the two, in the mean over the common seeds.
        cost: Of the arm.
        difference: None where the arm's cost is outside the two.
        reason: Why there is no difference.
    """

    measure: str
    references: tuple[str, str]
    stopped: bool
    costs: tuple[float, float]
    cost: float
    difference: Difference | None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """An arm against random rows, over the seeds that both have.

    Attributes:
        references: Random rows as many as the sub-batch, and as the large batch.
        differences: Measure → arm less the first reference.
        shares: Measure → how much of the distance between the two is closed.
        equal_cost: By measure of cost and by how random rows could have spent it.
    """

    references: tuple[str, str]
    differences: Mapping[str, Difference]
    shares: Mapping[str, Share]
    equal_cost: tuple[EqualCost, ...]

    def at_equal_cost(self, measure: str = "row_cost", *, more_steps: bool = False) -> EqualCost | None:
        """The comparison at an equal cost of one kind; None where a random arm isn't there."""
        for one in self.equal_cost:
            if one.measure == measure and (one.references[1] != self.references[1]) == more_steps:
                return one
        return None


def compare(name: str, references: tuple[str, str], runs: Runs) -> Comparison:
    """Compare an arm with random rows."""
    low, high = references
    arm, start, goal = _numbers(runs, name), _numbers(runs, low), _numbers(runs, high)
    differences, shares = {}, {}
    for measure in next(iter(arm.values())):
        pair = _columns(measure, arm, start)
        if difference := paired_difference(*pair):
            differences[measure] = difference
    for measure, smaller in _SHARED.items():
        three = _columns(measure, arm, start, goal)
        if three[0]:
            shares[measure] = share_closed(*three, smaller=smaller)
    more_steps = (low, f"{low}_2x")
    ways = [way for way in (references, more_steps) if all(runs.get(reference) for reference in way)]
    equal = tuple(one for way in ways for one in _equal_costs(arm, way, runs)) if name not in references else ()
    return Comparison(references, differences, shares, equal)


_Numbers = Mapping[int, Mapping[str, float | None]]


def _equal_costs(arm: _Numbers, references: tuple[str, str], runs: Runs) -> Iterator[EqualCost]:
    start, goal = (_numbers(runs, reference) for reference in references)
    seeds = _common("balanced", arm, start, goal)
    losses = _columns("balanced", arm, start, goal)
    if not seeds:
        return
    for measure in _COSTS:
        cost, cheap, dear = (_mean(column) for column in _columns(measure, arm, start, goal))
        costs = (cheap, dear)
        equal = between(cost, costs, (losses[1], losses[2]))
        if equal is None:
            beyond = f"more than {references[1]}" if cost > dear else f"less than {references[0]}"
            reason = f"costs {beyond.replace('_', ' ')}"
            yield EqualCost(measure, references, False, costs, cost, None, reason)
            continue
        early = [_stopped(runs[references[1]][seed], cost / dear) for seed in seeds]
        stopped = _mean(early) < _mean(equal)  # false where a curve isn't known
        difference = paired_difference(losses[0], early if stopped else equal)
        yield EqualCost(measure, references, stopped, costs, cost, difference)


def _stopped(run: Run, part: float) -> float:
    """The loss after a part of a run's steps."""
    points = curve(run)
    return along(points, part * max(points, default=0))


def _numbers(runs: Runs, name: str) -> _Numbers:
    return {seed: measures(run) for seed, run in runs.get(name, {}).items()}


def _columns(measure: str, *arms: _Numbers) -> list[list[float]]:
    """A measure of each arm, over the seeds in which all have it."""
    common = _common(measure, *arms)
    return [[float(value) for seed in common if (value := arm[seed][measure]) is not None] for arm in arms]


def _common(measure: str, *arms: _Numbers) -> list[int]:
    return [seed for seed in arms[0] if all(arm.get(seed, {}).get(measure) is not None for arm in arms)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
