"""What hundreds of subscribers cost a server, and how late they are: measured, printed, drawn.

The server is one process, all subscribers another, on one machine. `reports` are runs as trainers make them: a step is
selected once every rank has reported, so the delay is that of one selection to all. `streams` sends as fast as it can.
`idle` holds half of the streams open without reading. `records` sends each rank its rows, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from selector_server.bench.paired import write_result
from selector_server.bench.subscribers.measure import Measured, measure
from selector_server.bench.subscribers.order import Order

_FEW, _MANY = 8, 512
_IDLE_STEPS, _IDLE_ROWS = 200, 4096


def orders(*, quick: bool) -> dict[str, Order]:
    """What is measured, by name."""
    reported, streamed = (20, 100) if quick else (200, 1000)
    counts = (_FEW, _MANY) if quick else (_FEW, 64, _MANY)
    return {
        **{f"reports, {n} ranks": Order(n, reported, lookahead=1, reports=True) for n in counts},
        **{f"streams, {n} ranks": Order(n, streamed, lookahead=streamed, reports=False) for n in counts},
        f"idle, {_FEW} of {2 * _FEW} ranks": Order(
            2 * _FEW, _IDLE_STEPS, lookahead=_IDLE_STEPS, reports=False, sub_batch=_IDLE_ROWS, idle=_FEW
        ),
        **{
            f"reports and records, {n} ranks": Order(n, reported, lookahead=1, reports=True, records=True)
            for n in counts
        },
    }


def compare(*, out: Path, quick: bool, console: Console) -> dict[str, Any]:
    """Measure all orders, print, draw and write.

    Raises:
        ConfigError: `out` can't be written.
        SelectionError: a rank didn't receive every selection once and in order.
    """
    found, delays = {}, {}
    for name, order in orders(quick=quick).items():
        console.print(f"{name}: {order.steps} selections of {order.sub_batch} rows")
        measured = measure(order)
        found[name] = _summary(order, measured)
        delays[name] = _steady(order, measured)
    few, many = (found[f"streams, {n} ranks"]["server_peak_bytes"] for n in (_FEW, _MANY))
    result = {"quick": quick, "measured": found, "memory_ratio": many / few if few and many else None}
    console.print(_table(result))
    draw({name: ms for name, ms in delays.items() if name.startswith("reports,")}, out / "subscribers.png")
    write_result(out, result)
    return result


def _summary(order: Order, measured: Measured) -> dict[str, Any]:
    received = measured.received_bytes
    p50, p95 = np.quantile(_steady(order, measured), [0.5, 0.95]).tolist()
    return {
        "ranks": order.ranks,
        "idle": order.idle,
        "steps": order.steps,
        "messages_per_s": measured.messages_per_s,
        "selection_bytes": None if received is None else received / order.ranks / order.steps,
        "delay_ms_p50": p50,
        "delay_ms_p95": p95,
        "server_start_bytes": measured.server_start_bytes,
        "server_peak_bytes": measured.server_peak_bytes,
    }


def _steady(order: Order, measured: Measured) -> npt.NDArray[np.float64]:
    """Delays of those who read, without the first two steps, which are durable before every rank has connected."""
    return measured.delay_ms[order.idle :, 2:].ravel()


def _table(result: Mapping[str, Any]) -> Table:
    ratio = result["memory_ratio"]
    table = Table(
        title="Selections to many ranks; every rank got every one, once and in order"
        + (f"; memory at {_MANY} ranks {ratio:.2f} × that at {_FEW}" if ratio else "")
    )
    measures = ("selections", "bytes each", "received / s", "delay p50, ms", "p95")
    for heading in ("", *measures, "server's peak, MiB", "before the run"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in result["measured"].items():
        peak, start = (
            "unknown" if row[key] is None else f"{row[key] / 2**20:.0f}"
            for key in ("server_peak_bytes", "server_start_bytes")
        )
        delays = (f"{row['delay_ms_p50']:.1f}", f"{row['delay_ms_p95']:.1f}")
        size = "unknown" if row["selection_bytes"] is None else f"{row['selection_bytes']:,.0f}"
        table.add_row(name, str(row["steps"]), size, f"{row['messages_per_s']:,.0f}", *delays, peak, start)
    return table


def draw(delay_ms: Mapping[str, npt.NDArray[np.float64]], path: Path) -> None:
    """The share of deliveries that took at most so long."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#E5E5E5")
    shares = np.linspace(0, 1, 200)
    for (name, each), color in zip(delay_ms.items(), ("#0072B2", "#009E73", "#E69F00"), strict=False):
        axes.plot(np.maximum(np.quantile(each, shares), 0.01), shares, label=name, color=color)
    axes.set_xscale("log")
    axes.set_xlabel("from durable to received, ms")
    axes.set_ylabel("share of deliveries")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, facecolor="white")
