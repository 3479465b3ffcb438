"""What a soak did and found: JSON, a table, a picture of the run over time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from tests.chaos.rig import Died
from tests.chaos.schedule import Fault

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Struck:
    """A fault as it happened.

    Attributes:
        fault: As planned.
        began_ns: When it struck, by `time.time_ns`.
        over_ns: When it had done all that it does.
        ended_ns: When what it stopped or killed had been started again, too.
        completed: Steps that the job had completed when it struck.
        stood_still_s: The longest time without a completed step that falls into the fault or ends after it.
        repeated_steps: Steps that had to be trained again.
    """

    fault: Fault
    began_ns: int
    over_ns: int
    ended_ns: int
    completed: int
    stood_still_s: float = 0.0
    repeated_steps: int = 0


@dataclass(frozen=True)
class Line:
    """An attempt over time: when it was started, and when rank 0 had completed each step."""

    began_ns: int
    first_step: int
    completed_ns: list[int]


@dataclass(frozen=True)
class Outcome:
    """All of a soak.

    Attributes:
        seed: Of the schedule.
        num_steps: Of the run.
        ranks: Of the job.
        undisturbed_s: How long the run took without faults, from the first completed step to the last.
        disturbed_s: And with them.
        struck: The faults.
        lines: The attempts.
        died: Attempts that ended with an error.
        server_starts: How often the server was started.
        notes: What was left out, and why.
        differences: What is wrong; empty where the disturbed run is the undisturbed one.
    """

    seed: int
    num_steps: int
    ranks: int
    undisturbed_s: float
    disturbed_s: float
    struck: list[Struck]
    lines: list[Line]
    died: list[Died]
    server_starts: int
    notes: list[str]
    differences: list[str]


def measure(struck: Sequence[Struck], lines: Sequence[Line]) -> list[Struck]:
    """Add to each fault how long the job stood still, and how many steps were trained again for it."""
    done = sorted(at for line in lines for at in line.completed_ns)
    measured = []
    for number, each in enumerate(struck):
        last = struck[number + 1].began_ns if number + 1 < len(struck) else each.ended_ns
        before = max((at for at in done if at <= each.began_ns), default=lines[0].began_ns)
        # To the first step after the fault was over.
        after = next((at for at in done if at > each.ended_ns), each.ended_ns)
        times = [before, *(at for at in done if before < at < after), after]
        still = max(b - a for a, b in itertools.pairwise(times))
        begun = [line for line in lines if each.began_ns <= line.began_ns < max(last, each.ended_ns)]
        repeated = sum(max(0, _reached(lines, line.began_ns) - line.first_step) for line in begun)
        measured.append(replace(each, stood_still_s=round(still / 1e9, 2), repeated_steps=repeated))
    return measured


def _reached(lines: Sequence[Line], at_ns: int) -> int:
    """The furthest that any attempt had come by then."""
    counts = (line.first_step + sum(at <= at_ns for at in line.completed_ns) for line in lines if line.began_ns < at_ns)
    return max(counts, default=0)


def write(outcome: Outcome, folder: Path, console: Console) -> None:
    """Write report.json, report.txt and timeline.png, and print the table."""
    (folder / "report.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n")
    table = fault_table(outcome)
    with (folder / "report.txt").open("w") as file:
        for target in (Console(file=file, width=120), console):
            target.print(table)
            for line in summary(outcome):
                target.print(line, markup=False, highlight=False)
    _draw(outcome, folder / "timeline.png")


def fault_table(outcome: Outcome) -> Table:
    """One row for each fault."""
    table = Table(title="faults, in the order they struck")
    for column, justify in (
        ("#", "right"), ("at, s", "right"), ("step", "right"), ("fault", "left"), ("lasted, s", "right"),
        ("job stood still, s", "right"), ("steps trained again", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    start = outcome.lines[0].began_ns
    for each in outcome.struck:
        table.add_row(
            str(each.fault.number),
            f"{(each.began_ns - start) / 1e9:.1f}",
            str(each.completed),
            each.fault.kind,
            f"{(each.ended_ns - each.began_ns) / 1e9:.1f}",
            f"{each.stood_still_s:.1f}",
            str(each.repeated_steps),
        )
    return table


def summary(outcome: Outcome) -> list[str]:
    """The soak in a few lines."""
    kinds = sorted({each.fault.kind for each in outcome.struck})
    lines = [
        f"{len(outcome.struck)} faults of {len(kinds)} kinds in {outcome.num_steps} steps on {outcome.ranks} ranks; "
        f"the job was started {len(outcome.lines)} times, the server {outcome.server_starts} times",
        f"first to last step: {outcome.undisturbed_s:.0f} s undisturbed, {outcome.disturbed_s:.0f} s with the faults",
        *(f"attempt {each.attempt} ended: {each.words}" for each in outcome.died),
        *(f"note: {note}" for note in outcome.notes),
    ]
    if outcome.differences:
        return [*lines, f"NOT THE SAME RUN, {len(outcome.differences)} differences:", *outcome.differences[:50]]
    return [*lines, "same selections, same steps on every rank, same final weights as without faults"]


def _draw(outcome: Outcome, path: Path) -> None:
    start = outcome.lines[0].began_ns
    figure, axes = plt.subplots(figsize=(14, 7), constrained_layout=True)
    for line in outcome.lines:
        seconds = [(at - start) / 1e9 for at in line.completed_ns]
        axes.plot(seconds, range(line.first_step + 1, line.first_step + 1 + len(seconds)), lw=1.5, color="black")
    kinds = sorted({each.fault.kind for each in outcome.struck})
    colours = matplotlib.colormaps["tab20"]
    for number, kind in enumerate(kinds):
        for each in (each for each in outcome.struck if each.fault.kind == kind):
            at, until = (each.began_ns - start) / 1e9, (each.ended_ns - start) / 1e9
            axes.axvspan(at, max(until, at + 0.5), color=colours(number % 20), alpha=0.35, lw=0)
        axes.plot([], [], color=colours(number % 20), lw=6, alpha=0.6, label=kind)
    axes.set(
        xlabel="seconds since the job was first started",
        ylabel="steps completed",
        ylim=(0, outcome.num_steps),
        title=f"{len(outcome.struck)} faults; a line for each start of the job, broken where it stood still",
    )
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
