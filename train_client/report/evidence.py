"""What the page is made from: results, what they say, and paired comparisons along training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train_client.experiment.measures import Run, curve, measures, row_cost, set_accuracy, source_losses
from train_client.experiment.results import Results
from train_client.experiment.statistics import Difference, Estimate, estimate, paired_difference
from train_client.experiment.summary import ArmSummary, Summary

_REFERENCES = ("random_r", "random_b")


@dataclass(frozen=True)
class Evidence:
    """Results and their summary, with the questions that several parts of the page ask of both."""

    results: Results
    summary: Summary

    @property
    def main(self) -> list[ArmSummary]:
        """The arms of the main comparison; all arms where no group is called main."""
        return self.summary.in_group("main") or list(self.summary.arms)

    @property
    def selecting(self) -> list[ArmSummary]:
        """Main arms that score rows to select them, out of large batches drawn by source."""
        return [arm for arm in self.main if arm.mean("scored") and arm.own.references == _REFERENCES]

    @property
    def best(self) -> ArmSummary | None:
        """The selecting arm with the lowest loss relative to random r; None where nothing can be compared."""
        compared = [arm for arm in self.selecting if "balanced" in arm.own.differences]
        return min(compared, key=lambda arm: arm.own.differences["balanced"].mean, default=None)

    def runs(self, name: str) -> Mapping[int, Run]:
        """Seed → result of an arm, empty where there is none."""
        return self.results.runs.get(name, {})

    def config(self, name: str) -> Mapping[str, Any]:
        """The configuration of an arm's first seed."""
        first = next(iter(self.runs(name).values()))
        tree: Mapping[str, Any] = first["config"]
        return tree

    def difference(self, arm: str, reference: str, measure: str = "balanced") -> Difference | None:
        """One arm less another, over the seeds that both have."""
        pairs = list(self._common(arm, reference))
        values = [(measures(one)[measure], measures(other)[measure]) for one, other in pairs]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        return paired_difference([a for a, _ in known], [b for _, b in known])

    def along(self, arm: str, reference: str) -> list[tuple[int, Difference]]:
        """The difference of balanced losses at every step at which all have one."""
        curves = [(curve(one), curve(other)) for one, other in self._common(arm, reference)]
        if not curves:
            return []
        steps = set.intersection(*(set(one) & set(other) for one, other in curves))
        points = ((s, paired_difference([a[s] for a, _ in curves], [b[s] for _, b in curves])) for s in sorted(steps))
        return [(step, difference) for step, difference in points if difference is not None]

    def by_source(self, arm: str, reference: str) -> dict[str, Difference]:
        """Source → the difference of losses at the end."""
        pairs = [(source_losses(one), source_losses(other)) for one, other in self._common(arm, reference)]
        found = {}
        for source in dict.fromkeys(source for one, _ in pairs for source in one):
            both = [(a[source], b[source]) for a, b in pairs if source in a and source in b]
            difference = paired_difference([a for a, _ in both], [b for _, b in both])
            if difference is not None:
                found[source] = difference
        return found

    def set_average(self, name: str, sets: Sequence[str]) -> Estimate:
        """Accuracy in the mean over some question sets, of the seeds that have all of them."""
        found = (set_accuracy(run) for run in self.runs(name).values())
        return estimate([sum(of[one] for one in sets) / len(sets) for of in found if all(one in of for one in sets)])

    def cost(self, name: str) -> float:
        """Row passes of an arm's run."""
        return row_cost(next(iter(self.runs(name).values())))

    def _common(self, arm: str, reference: str) -> Iterator[tuple[Run, Run]]:
        one, other = self.runs(arm), self.runs(reference)
        return ((one[seed], other[seed]) for seed in one if seed in other)


def short_source(name: str) -> str:
    """A source's name without what all names have in common."""
    return name.removeprefix("data/").removesuffix(".json")
