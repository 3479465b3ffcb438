"""What telling of a step costs: each operation timed by itself, times how often a step needs it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

# The step that costs are compared with, and the share of it that they may take.
STEP_SECONDS, LIMIT = 1.0, 0.01
# Prometheus scrapes this often by default where our configuration for it says so.
SCRAPE_EVERY_S = 15.0


@dataclass(frozen=True)
class Cost:
    """One operation.

    Attributes:
        name: In words.
        group: `metrics` or `traces`.
        seconds: Of one, the median of the rounds.
        per_step: How many a step needs.
    """

    name: str
    group: str
    seconds: float
    per_step: float

    @property
    def share(self) -> float:
        """Of a step of one second."""
        return self.seconds * self.per_step / STEP_SECONDS


def timed(
    do: Callable[[], object], *, rounds: int, count: int, afterwards: Callable[[], object] = lambda: None
) -> float:
    """Seconds of processor time that one call takes in this process, background threads included: median of rounds.

    Args:
        do: The call.
        rounds: How many.
        count: Calls in each.
        afterwards: Called at a round's end, and timed with it: what calls leave to be done later.
    """
    do()
    afterwards()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(count):
            do()
        afterwards()
        found.append((time.process_time() - began) / count)
    return statistics.median(found)


def tell_costs(costs: Sequence[Cost], out: Path, console: Console, *, end: str) -> dict[str, object]:
    """Print a table and write `result.json`.

    Args:
        costs: All of them.
        out: A folder that is there.
        console: For the table.
        end: Whose they are.
    """
    table = Table("operation", "µs each", "per step", f"% of {STEP_SECONDS:g} s", title=f"what telling costs {end}")
    for cost in costs:
        table.add_row(cost.name, f"{cost.seconds * 1e6:.1f}", f"{cost.per_step:g}", f"{cost.share:.4%}")
    groups = {group: sum(cost.share for cost in costs if cost.group == group) for group in ("metrics", "traces")}
    for group, share in groups.items():
        table.add_row(f"all {group}", "", "", f"{share:.4%}", style="bold")
    table.add_row(f"both; the limit is {LIMIT:.0%}", "", "", f"{sum(groups.values()):.4%}", style="bold")
    console.print(table)
    result: dict[str, object] = {
        "end": end,
        "step_seconds": STEP_SECONDS,
        "limit": LIMIT,
        "shares": groups,
        "costs": [asdict(cost) | {"share": cost.share} for cost in costs],
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
