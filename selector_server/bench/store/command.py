"""A store of many rows beside a small one: opening, drawing and memory, measured in turns, printed, drawn.

Every round starts a process for each store. Targets are those of ten million rows: opened in a second, a large
batch of 4,096 drawn in 20 ms, and 300 MB of memory more than the small store takes.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from selector_server.bench.paired import median_interval, write_result
from selector_server.bench.store.serving import Order, Served, serve
from selector_server.bench.store.synthetic import BYTES_PER_ROW, write_synthetic
from shared.errors import ConfigError

SMALL_ROWS = 10_000
TARGETS = {"open_seconds": 1.0, "draw_p99_ms": 20.0, "memory_more_mb": 300.0}
_LARGE_BATCH = 4096


def compare(*, out: Path, quick: bool, console: Console, rows: int) -> dict[str, Any]:
    """Measure, print, draw and write.

    Raises:
        ConfigError: `out` can't be written, has no room for the stores, or the rows are too few.
    """
    _require_room(out, rows)
    order = Order(_LARGE_BATCH, draws=50 if quick else 200, selections=2 if quick else 6)
    counts = {"small": SMALL_ROWS, "large": rows}
    served: dict[str, list[Served]] = {"small": [], "large": []}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        stores = {"small": Path(folder) / "small", "large": Path(folder) / "large"}
        console.print(f"writing stores of {SMALL_ROWS:,} and {rows:,} rows, {rows * BYTES_PER_ROW / 1e9:.1f} GB")
        for name, count in counts.items():
            size = write_synthetic(stores[name], rows=count).rows_bytes
        for number in range(1 if quick else 3):
            console.print(f"round {number + 1}: {order.selections} selections of {_LARGE_BATCH:,} rows from each")
            for name in stores if number % 2 else reversed(stores):
                served[name].append(serve(stores[name], order))
    result = {
        "quick": quick,
        "rows": counts,
        "rows_bytes": size,
        "targets": TARGETS,
        "measured": {name: _summary(rounds) for name, rounds in served.items()},
        "memory_more_mb": _more_memory(served),
    }
    console.print(_table(result))
    draw({name: rounds[-1] for name, rounds in served.items()}, counts, out / "store.png")
    write_result(out, result)
    return result


def _require_room(out: Path, rows: int) -> None:
    if rows < SMALL_ROWS:
        raise ConfigError(f"--rows is {rows:,}, the small store beside it has {SMALL_ROWS:,}: give at least as many")
    need, free = int(1.1 * rows * BYTES_PER_ROW), shutil.disk_usage(out).free
    if need > free:
        raise ConfigError(
            f"a store of {rows:,} rows takes {need / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB left: give fewer "
            "--rows, or an --out on another disk"
        )


def _summary(rounds: Sequence[Served]) -> dict[str, Any]:
    """Medians over the rounds; of draws and reads, over all of them together."""
    draws = {
        kind: np.concatenate([np.array(each.draw_seconds[kind]) for each in rounds]) for kind in rounds[0].draw_seconds
    }
    return {
        "cold_open_seconds": statistics.median(each.cold_open_seconds for each in rounds),
        "open_seconds": statistics.median(each.open_seconds for each in rounds),
        "cold_draw_ms": 1e3 * statistics.median(each.cold_draw_seconds for each in rounds),
        "draw_ms": {kind: 1e3 * float(np.median(seconds)) for kind, seconds in draws.items()},
        "draw_p99_ms": {kind: 1e3 * float(np.quantile(seconds, 0.99)) for kind, seconds in draws.items()},
        "read_ms": 1e3 * statistics.median(seconds for each in rounds for seconds in each.read_seconds),
        "start_mb": _median_mb([each.start_bytes for each in rounds]),
        "resident_mb": _median_mb([each.resident_bytes[-1] if each.resident_bytes else None for each in rounds]),
        "peak_mb": _median_mb([each.peak_bytes for each in rounds]),
    }


def _median_mb(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) / 1e6 if known else None


def _more_memory(served: Mapping[str, Sequence[Served]]) -> dict[str, Any] | None:
    """By how much the large store's process is larger, at its peak, of each round's pair."""
    pairs = [
        (large.peak_bytes, small.peak_bytes) for large, small in zip(served["large"], served["small"], strict=True)
    ]
    more = [(large - small) / 1e6 for large, small in pairs if large is not None and small is not None]
    if not more:
        return None
    found = median_interval(more)
    return {"median": found.median, "low": found.low, "high": found.high}


def _table(result: Mapping[str, Any]) -> Table:
    small, large = (result["measured"][name] for name in ("small", "large"))
    more = result["memory_more_mb"]
    table = Table(
        title=f"A store of {result['rows']['large']:,} rows ({result['rows_bytes'] / 1e9:.1f} GB) beside one of "
        f"{result['rows']['small']:,}; large batches of {_LARGE_BATCH:,}"
    )
    for heading in ("", "small", "large", "wanted of the large"):
        table.add_column(heading, justify="right" if heading else "left")

    def line(name: str, values: Sequence[float | None], form: str, wanted: str = "") -> None:
        table.add_row(name, *("unknown" if value is None else format(value, form) for value in values), wanted)

    for name, key in (("open, s", "open_seconds"), ("open, not in the system's cache, s", "cold_open_seconds")):
        line(name, (small[key], large[key]), ".3f", "< 1")
    line("first draw after that, ms", (small["cold_draw_ms"], large["cold_draw_ms"]), ".1f")
    for kind in small["draw_ms"]:
        line(f"draw {kind}, median, ms", (small["draw_ms"][kind], large["draw_ms"][kind]), ".2f", "< 20")
        line(f"draw {kind}, p99, ms", (small["draw_p99_ms"][kind], large["draw_p99_ms"][kind]), ".2f", "< 20")
    line("read the rows, ms", (small["read_ms"], large["read_ms"]), ".1f")
    line("memory before opening, MB", (small["start_mb"], large["start_mb"]), ".0f")
    line("memory after selecting, MB", (small["resident_mb"], large["resident_mb"]), ".0f")
    line("memory at its peak, MB", (small["peak_mb"], large["peak_mb"]), ".0f")
    if more:
        table.add_row(
            "more than the small store's, MB",
            "",
            f"{more['median']:.0f} [{more['low']:.0f}, {more['high']:.0f}]",
            "< 300",
        )
    return table


def draw(served: Mapping[str, Served], rows: Mapping[str, int], path: Path) -> None:
    """Resident memory after every selection, of each store's process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#E5E5E5")
    for (name, each), color in zip(served.items(), ("#0072B2", "#E69F00"), strict=True):
        held = [value for value in (each.start_bytes, *(each.resident_bytes or [])) if value is not None]
        axes.plot([value / 1e6 for value in held], marker="o", label=f"{rows[name]:,} rows", color=color)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("selections (0: before the store is opened)")
    axes.set_ylabel("resident memory, MB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, facecolor="white")
