"""An experiment's results so far → what they say: means over seeds, paired comparisons, curves; summary.json."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train_client.experiment.collect import write_json
from train_client.experiment.comparison import Comparison, compare
from train_client.experiment.measures import (
    Run,
    curve,
    gradient_curve,
    measures,
    row_cost,
    set_accuracy,
    source_accuracy,
    source_losses,
)
from train_client.experiment.results import ArmRecord, Results, read_results
from train_client.experiment.statistics import Estimate, estimate

SUMMARY_FORMAT = 1
SUMMARY_FILE = "summary.json"
_WEIGHTED = ("random_r", "random_b")


@dataclass(frozen=True)
class Point:
    """Somewhere along training.

    Attributes:
        step: Steps trained so far.
        cost: Row passes so far, in the mean over seeds.
        value: Over seeds.
    """

    step: int
    cost: float
    value: Estimate


@dataclass(frozen=True)
class ArmSummary:
    """What the seeds of an arm say.

    Attributes:
        name, title, groups, variant: As in experiment.json.
        seeds: Which are finished.
        diverged: Seeds whose balanced loss at the end isn't finite; means leave them out.
        means: Measure → its mean; `measures` names them.
        sets: Question set → accuracy.
        source_losses: Source → held-out loss at the end.
        source_accuracy: Source → accuracy.
        curves: "balanced" and "natural" held-out loss; "error", "bias" and "bias_floor" of the gradient.
        comparisons: With the arm's own random references, then, where those are others, with the source-weighted ones.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    variant: str
    seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    means: Mapping[str, Estimate]
    sets: Mapping[str, Estimate]
    source_losses: Mapping[str, Estimate]
    source_accuracy: Mapping[str, Estimate]
    curves: Mapping[str, tuple[Point, ...]]
    comparisons: tuple[Comparison, ...] = field(default=())

    @property
    def own(self) -> Comparison:
        """The comparison with its own references."""
        return self.comparisons[0]

    @property
    def weighted(self) -> Comparison:
        """The comparison with random rows drawn by source."""
        return self.comparisons[-1]

    def mean(self, measure: str) -> float | None:
        """A measure's mean over seeds."""
        return self.means[measure].mean


@dataclass(frozen=True)
class Summary:
    """What an experiment says so far.

    Attributes:
        name, scale, smoke: Which experiment.
        seeds: That every arm is to have.
        arms: Those with a result, in order.
        missing: Arm and seed of every run that isn't finished.
    """

    format: int
    name: str
    scale: str
    smoke: bool
    seeds: tuple[int, ...]
    arms: tuple[ArmSummary, ...]
    missing: tuple[tuple[str, int], ...]

    def find(self, name: str) -> ArmSummary | None:
        """An arm by name; None if it has no result."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def in_group(self, group: str) -> list[ArmSummary]:
        """The arms that help to answer a question, in order."""
        return [arm for arm in self.arms if group in arm.groups]


def summarise(folder: Path) -> Summary:
    """Read an experiment's folder, and write its summary.json.

    Raises:
        DataError: no results there.
    """
    summary = make_summary(read_results(folder))
    # Through text: tuples become lists, as whoever reads the file back gets them.
    write_json(folder / SUMMARY_FILE, json.loads(json.dumps(dataclasses.asdict(summary), allow_nan=False)))
    return summary


def make_summary(results: Results) -> Summary:
    """Summarise what is there; arms and seeds may be missing."""
    about = results.about
    missing = tuple((arm.name, s) for arm in results.arms for s in results.seeds if s not in results.runs[arm.name])
    return Summary(
        format=SUMMARY_FORMAT,
        name=about["name"],
        scale=about["scale"],
        smoke=bool(about.get("smoke", False)),
        seeds=tuple(results.seeds),
        arms=tuple(_summarise_arm(arm, results) for arm in results.present),
        missing=missing,
    )


def _summarise_arm(arm: ArmRecord, results: Results) -> ArmSummary:
    runs = results.runs[arm.name]
    numbers = {seed: measures(run) for seed, run in runs.items()}
    ends = {seed: of_seed["balanced"] for seed, of_seed in numbers.items()}
    names = next(iter(numbers.values()))
    return ArmSummary(
        name=arm.name,
        title=arm.title,
        groups=arm.groups,
        variant=arm.variant,
        seeds=tuple(runs),
        diverged=tuple(seed for seed, loss in ends.items() if loss is not None and not math.isfinite(loss)),
        means={name: _over_seeds([of_seed[name] for of_seed in numbers.values()]) for name in names},
        sets=_by_key(runs, set_accuracy),
        source_losses=_by_key(runs, source_losses),
        source_accuracy=_by_key(runs, source_accuracy),
        curves=dict(_curves(list(runs.values()))),
        comparisons=tuple(_comparisons(arm, results)),
    )


def _comparisons(arm: ArmRecord, results: Results) -> Iterator[Comparison]:
    yield compare(arm.name, arm.references, results.runs)
    if not arm.variant and arm.references != _WEIGHTED and {"main", "sampling"} & set(arm.groups):
        yield compare(arm.name, _WEIGHTED, results.runs)


def _over_seeds(values: Sequence[float | None]) -> Estimate:
    """Over the seeds that have the measure at all, so that `left_out` counts only values that aren't finite."""
    return estimate([value for value in values if value is not None])


def _by_key(runs: Mapping[int, Run], values_of: Callable[[Run], Mapping[str, float]]) -> dict[str, Estimate]:
    found = [values_of(run) for run in runs.values()]
    keys = dict.fromkeys(key for values in found for key in values)
    return {key: _over_seeds([values.get(key) for values in found]) for key in keys}


def _curves(runs: Sequence[Run]) -> Iterator[tuple[str, tuple[Point, ...]]]:
    for kind in ("balanced", "natural"):
        yield kind, tuple(_points(runs, [curve(run, kind) for run in runs]))
    for kind in ("error", "bias", "bias_floor"):
        yield kind, tuple(_points(runs, [gradient_curve(run, kind) for run in runs]))


def _points(runs: Sequence[Run], curves: Sequence[Mapping[int, float]]) -> Iterator[Point]:
    """The steps that all seeds have."""
    steps: set[int] = set.intersection(*(set(of_seed) for of_seed in curves))
    per_step = [row_cost(run) / _steps(run) for run in runs]
    for step in sorted(steps):
        yield Point(step, step * sum(per_step) / len(per_step), estimate([of_seed[step] for of_seed in curves]))


def _steps(run: Run) -> int:
    steps: Any = run["config"]["run"]["num_steps"]
    return int(steps)
