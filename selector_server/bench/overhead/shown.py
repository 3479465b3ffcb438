"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from selector_server.bench.overhead.measured import LIMIT, SIDES, STEP_SECONDS, Measured

_WAITED = {True: "a selection waits", False: "meanwhile"}
_COLORS = {True: "#D55E00", False: "#56B4E9"}


def cost_table(measured: Measured) -> Table:
    """A row for every operation, and the sums."""
    table = Table(
        title=f"{measured.preset}, adapter of {measured.weights_bytes / 1e6:,.1f} MB, "
        f"{measured.journal_bytes / 1e3:,.1f} kB of journal a step"
    )
    for column in ("side", "operation", "when"):
        table.add_column(column)
    for column in ("a step", "ms", "interval", f"% of {STEP_SECONDS:.0f} s"):
        table.add_column(column, justify="right")
    for operation, seconds in zip(measured.operations, measured.seconds, strict=True):
        table.add_row(
            operation.side,
            operation.name,
            _WAITED[operation.waited_for],
            f"{operation.per_step:.2g}",
            f"{1e3 * seconds.median:.3f}",
            f"{1e3 * seconds.low:.3f} to {1e3 * seconds.high:.3f}",
            f"{100 * operation.per_step * seconds.median / STEP_SECONDS:.3f}",
        )
    table.add_section()
    for (side, waited_for), total in measured.totals.items():
        verdict = f"{total.confidence:.0%} interval {100 * total.low:.2f} to {100 * total.high:.2f}"
        table.add_row(side, "together", _WAITED[waited_for], "", "", verdict, f"{100 * total.median:.3f}")
    return table


def as_json(measured: Measured) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "preset": measured.preset,
        "adapter": measured.adapter,
        "weights_bytes": measured.weights_bytes,
        "journal_bytes_per_step": measured.journal_bytes,
        "operations": [
            {
                "side": operation.side,
                "name": operation.name,
                "selection_waits": operation.waited_for,
                "per_step": operation.per_step,
                "seconds": asdict(seconds),
            }
            for operation, seconds in zip(measured.operations, measured.seconds, strict=True)
        ],
        "share_of_step": {
            side: {("selection_waits" if waited else "meanwhile"): asdict(measured.totals[side, waited])
                   for waited in (True, False)}
            for side in SIDES
        },
        "within_limit": {
            "what_a_selection_waits_for": sum(measured.totals[side, True].high for side in SIDES) <= LIMIT,
            "with_what_is_done_meanwhile": {
                side: measured.totals[side, True].high + measured.totals[side, False].high <= LIMIT for side in SIDES
            },
        },
    }  # fmt: skip


def draw(found: Sequence[Measured], path: Path) -> None:
    """The sums, beside the limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [(measured, side) for measured in found for side in SIDES]
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(bars)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = [0.0] * len(bars)
    for waited_for, label in _WAITED.items():
        widths = [100 * measured.totals[side, waited_for].median for measured, side in bars]
        axes.barh(range(len(bars)), widths, left=left, color=_COLORS[waited_for], label=label, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, end in enumerate(left):
        axes.text(end, place, f" {end:.2f}", va="center")
    axes.axvline(100 * LIMIT, color="black", linewidth=1)
    names = [f"{measured.preset}, {measured.weights_bytes / 1e6:,.0f} MB, {side}" for measured, side in bars]
    axes.set_yticks(range(len(bars)), names)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, 2 * max(*left, 100 * LIMIT))
    axes.set_xlabel(f"% of a step of {STEP_SECONDS:.0f} s; the line is at {LIMIT:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, facecolor="white")
