"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from selector_server.bench.overhead.measured import KINDS, LIMIT, SIDES, STEP_SECONDS, Measured

_WHERE = {
    "selection": "in a selection's way",
    "weights": "in its weights' way",
    "beside": "beside",
    "all": "all of it",
}
_COLORS = {"selection": "#D55E00", "weights": "#E69F00", "beside": "#56B4E9"}


def cost_table(measured: Measured) -> Table:
    """A row for every operation, and the sums."""
    table = Table(
        title=f"{measured.preset}, adapter of {measured.weights_bytes / 1e6:,.1f} MB, "
        f"{measured.journal_bytes / 1e3:,.1f} kB of journal a step"
    )
    for column in ("side", "operation", "where"):
        table.add_column(column)
    for column in ("a step", "ms", "interval", f"% of {STEP_SECONDS:.0f} s"):
        table.add_column(column, justify="right")
    for operation, seconds in zip(measured.operations, measured.seconds, strict=True):
        table.add_row(
            operation.side,
            operation.name,
            _WHERE[operation.kind],
            f"{operation.per_step:.2g}",
            f"{1e3 * seconds.median:.3f}",
            f"{1e3 * seconds.low:.3f} to {1e3 * seconds.high:.3f}",
            f"{100 * operation.per_step * seconds.median / STEP_SECONDS:.3f}",
        )
    table.add_section()
    for (side, kind), total in measured.totals.items():
        interval = f"{total.confidence:.0%} interval {100 * total.low:.2f} to {100 * total.high:.2f}"
        table.add_row(side, "together", _WHERE[kind], "", "", interval, f"{100 * total.median:.3f}")
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
                "kind": operation.kind,
                "per_step": operation.per_step,
                "seconds": asdict(seconds),
            }
            for operation, seconds in zip(measured.operations, measured.seconds, strict=True)
        ],
        "share_of_step": {
            side: {kind: asdict(measured.totals[side, kind]) for kind in (*KINDS, "all")} for side in SIDES
        },
        "within_limit": {
            side: {kind: measured.totals[side, kind].high <= LIMIT for kind in (*KINDS, "all")} for side in SIDES
        },
    }


def draw(found: Sequence[Measured], path: Path) -> None:
    """The sums, beside the limit; adapters of one size share an axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = sorted({measured.weights_bytes for measured in found})
    panels = [[(m, side) for m in found if m.weights_bytes == size for side in SIDES] for size in sizes]
    num_bars = sum(map(len, panels))
    figure = Figure(figsize=(9, 1.4 + 0.42 * num_bars + 0.7 * len(panels)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=[len(bars) for bars in panels])[:, 0]
    for axes, bars in zip(all_axes, panels, strict=True):
        _draw_panel(axes, bars)
    all_axes[-1].set_xlabel(
        f"% of a step of {STEP_SECONDS:.0f} s, medians, numbers those of the sums; the line is at {LIMIT:.0%}"
    )
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, facecolor="white")


def _draw_panel(axes: Any, bars: Sequence[tuple[Measured, str]]) -> None:
    axes.axvline(100 * LIMIT, color="black", linewidth=1, zorder=0)
    left = [0.0] * len(bars)
    for kind, color in _COLORS.items():
        widths = [100 * measured.totals[side, kind].median for measured, side in bars]
        axes.barh(range(len(bars)), widths, left=left, color=color, label=_WHERE[kind], height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, ((measured, side), end) in enumerate(zip(bars, left, strict=True)):
        text = f"{100 * measured.totals[side, 'all'].median:.2f}"
        axes.annotate(
            text, (end, place), xytext=(6, 0), textcoords="offset points", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [f"{m.preset}, {m.weights_bytes / 1e6:,.0f} MB, {side}" for m, side in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max(*left, 100 * LIMIT))
    axes.spines[["top", "right"]].set_visible(False)
