"""The table at the end of an experiment: every arm's held-out loss, and how it compares with random rows."""

from __future__ import annotations

from rich.table import Table

from train_client.experiment.statistics import Difference, Estimate, Share
from train_client.experiment.summary import ArmSummary, Summary


def summary_table(summary: Summary) -> Table:
    """A line for each arm."""
    table = Table(title="held-out loss after training, balanced over sources")
    for column in (
        "arm",
        "seeds",
        "loss ± s.e.",
        "less random r [95 %]",
        "share of the way to random b [95 %]",
        "accuracy",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in summary.arms:
        own = arm.own
        is_reference = arm.name in own.references
        table.add_row(
            arm.title,
            str(len(arm.seeds)),
            _mean(arm.means["balanced"], 4),
            "" if is_reference else _difference(own.differences.get("balanced")),
            "" if is_reference else _share(own.shares.get("balanced")),
            _accuracy(arm),
        )
    return table


def _mean(estimate: Estimate, digits: int) -> str:
    if estimate.mean is None:
        return "–"
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{difference.mean:+.4f}{interval}"


def _share(share: Share | None) -> str:
    if share is None or share.value is None:
        return "–"
    interval = "" if share.low is None else f" [{share.low:.0%}, {share.high:.0%}]"
    return f"{share.value:.0%}{interval}"


def _accuracy(arm: ArmSummary) -> str:
    mean = arm.mean("accuracy")
    return "–" if mean is None else f"{mean:.1%}"
