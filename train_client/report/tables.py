"""Tables as plain data, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from train_client.experiment.comparison import Comparison
from train_client.experiment.statistics import Difference
from train_client.experiment.summary import ArmSummary
from train_client.report.evidence import Evidence, short_source
from train_client.report.looks import look_of
from train_client.report.numbers import (
    NOTHING,
    count,
    interval,
    memory,
    percent,
    plain,
    seconds,
    share_interval,
    signed,
    with_error,
)
from train_client.report.verdict import hardest


@dataclass(frozen=True)
class Cell:
    """A number, what stands small below it, and how it looks: "", "best" or "muted"."""

    text: str
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table; `color` and `outline` are of the mark beside its title."""

    title: str
    cells: Sequence[Cell]
    color: str = ""
    outline: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption; columns are (title, note)."""

    caption: str
    head: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]


MAIN_COLUMNS = (
    ("balanced loss", "± s.e."),
    ("against random r", "95% interval"),
    ("distance closed", "95% interval"),
    ("at equal cost", "95% interval"),
    ("natural loss", "± s.e."),
    ("accuracy", "± s.e."),
    ("gradient error", "± s.e."),
    ("bias", "by chance"),
    ("seconds", "± s.e."),
    ("device-seconds", "busy of held"),
    ("peak memory", "+ selector’s"),
    ("rows trained", "scored"),
    ("seeds", "diverged"),
)


def main_table(evidence: Evidence) -> Table:
    """Every main arm in every measure."""
    best = evidence.best
    rows = [_main_row(arm, best=arm is best) for arm in evidence.main]
    caption = (
        "Means over seeds. Differences, shares and equal-cost differences are paired by seed, against random rows "
        "drawn by source. Equal cost counts passes of rows through the model, and takes the best that "
        "random rows give for it: larger sub-batches, more steps, or either stopped early."
    )
    return Table(caption, "arm", MAIN_COLUMNS, rows)


def _main_row(arm: ArmSummary, *, best: bool) -> Row:
    means, weighted, look = arm.means, arm.weighted, look_of(arm.name)
    equal = hardest(arm) if arm.mean("scored") and arm.own is weighted else None
    reference = arm.name == weighted.references[0]
    cells = [
        Cell(with_error(means["balanced"]), kind="best" if best else ""),
        Cell(NOTHING) if reference else difference_cell(weighted.differences.get("balanced")),
        share_cell(arm, weighted),
        difference_cell(equal.difference if equal else None, missing=equal.reason if equal else ""),
        Cell(with_error(means["natural"])),
        Cell(_percent_with_error(arm)),
        Cell(with_error(means["gradient_error"], 2)),
        Cell(plain(arm.mean("bias"), 2), plain(arm.mean("bias_floor"), 2)),
        Cell(seconds(arm.mean("wall")), _error_only(arm, "wall")),
        Cell(seconds(arm.mean("busy")), f"of {seconds(arm.mean('held'))}"),
        Cell(memory(arm.mean("trainer_memory")), f"+ {memory(arm.mean('selector_memory'))}"),
        Cell(count(arm.mean("trained")), count(arm.mean("scored"))),
        Cell(str(len(arm.seeds)), str(len(arm.diverged) or "")),
    ]
    return Row(arm.title, cells, look.css_color, look.outline, "best" if best else "")


def difference_cell(difference: Difference | None, *, missing: str = "") -> Cell:
    """A difference with its interval; pale where that holds zero."""
    if difference is None:
        return Cell(NOTHING, missing)
    sure = difference.excludes_zero
    return Cell(signed(difference.mean), interval(difference) or "one seed", "" if sure else "muted")


def share_cell(arm: ArmSummary, comparison: Comparison) -> Cell:
    """A share with its interval, or why there is none; of the references, what it is by definition."""
    if arm.name in comparison.references:
        return Cell(percent(float(comparison.references.index(arm.name))))
    share = comparison.shares.get("balanced")
    if share is None:
        return Cell(NOTHING)
    if share.value is None:
        head, _, reason = share.reason.partition(": ")
        return Cell(head, reason, "muted")
    return Cell(percent(share.value), share_interval(share) or "one seed")


def group_table(arms: Sequence[ArmSummary], settings: Sequence[str], head: str) -> Table:
    """The arms that answer one question."""
    columns = (
        ("balanced loss", "± s.e."),
        ("against its random r", "95% interval"),
        ("distance closed", "95% interval"),
        ("accuracy", "± s.e."),
        ("gradient error", "bias"),
        ("seconds", "± s.e."),
        ("seeds", "diverged"),
    )
    rows = []
    for arm, setting in zip(arms, settings, strict=True):
        look, own = look_of(arm.name), arm.own
        cells = [
            Cell(setting),
            Cell(with_error(arm.means["balanced"])),
            Cell(NOTHING) if arm.name == own.references[0] else difference_cell(own.differences.get("balanced")),
            share_cell(arm, own),
            Cell(_percent_with_error(arm)),
            Cell(plain(arm.mean("gradient_error"), 2), plain(arm.mean("bias"), 2)),
            Cell(seconds(arm.mean("wall")), _error_only(arm, "wall")),
            Cell(str(len(arm.seeds)), str(len(arm.diverged) or "")),
        ]
        rows.append(Row(arm.title, cells, look.css_color, look.outline))
    return Table("", "arm", ((head, ""), *columns), rows)


def cost_table(evidence: Evidence) -> Table | None:
    """Selecting arms at equal cost, by what is held equal and by how random rows would have spent it."""
    ways = [(m, more) for m in ("row_cost", "busy", "held") for more in (False, True)]
    arms = [arm for arm in evidence.selecting if arm.own.equal_cost]
    used = [way for way in ways if any(arm.own.at_equal_cost(way[0], more_steps=way[1]) for arm in arms)]
    if not used:
        return None
    names = {"row_cost": "row passes", "busy": "device-s busy", "held": "device-s held"}
    columns = [(names[measure], "more steps" if more else "more rows") for measure, more in used]
    rows = []
    for arm in arms:
        cells = []
        for measure, more in used:
            one = arm.own.at_equal_cost(measure, more_steps=more)
            cells.append(difference_cell(one.difference if one else None, missing=one.reason if one else ""))
        look = look_of(arm.name)
        rows.append(Row(arm.title, cells, look.css_color, look.outline))
    caption = (
        "Balanced loss, difference to random rows for which as much was spent, with 95% intervals; above, what is "
        "held equal, and below it how random rows spend what selection spends on scores, "
        "stopped early where that is better. Device-seconds are of the "
        "machine that ran this; where other work ran beside, row passes say more."
    )
    return Table(caption, "arm", columns, rows)


def source_table(evidence: Evidence) -> Table | None:
    """Loss at the end by source, and accuracy where there is one."""
    arms = [arm for arm in evidence.main if arm.source_losses]
    if not arms:
        return None
    sources = list(dict.fromkeys(source for arm in arms for source in arm.source_losses))
    rows = []
    for source in sources:
        cells = []
        for arm in arms:
            accuracy = arm.source_accuracy.get(source)
            right = percent(accuracy.mean) if accuracy is not None and accuracy.mean is not None else ""
            cells.append(Cell(with_error(arm.source_losses.get(source)), right))
        rows.append(Row(short_source(source), cells))
    caption = (
        "Held-out loss at the end ± standard error; below it, where questions were asked, the share answered right."
    )
    return Table(caption, "source", [(arm.title, "") for arm in arms], rows)


def _percent_with_error(arm: ArmSummary) -> str:
    text = with_error(arm.means["accuracy"], 1, scale=100)
    return text if text == NOTHING else f"{text}%"


def _error_only(arm: ArmSummary, measure: str) -> str:
    error = arm.means[measure].standard_error
    return f"± {seconds(error)}" if error is not None else ""
