"""`selector-server top`: a terminal view of a server's runs that keeps itself up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selector_server.live.lanes import lanes
from selector_server.live.status import verdict_line
from selector_server.live.words import duration, ranks_there, trained_steps
from shared.errors import UnavailableError
from shared.pb.v1 import selector_pb2 as pb

_MOST_SOURCES = 12
_BAR_WIDTH = 24


def top(console: Console, address: str, ask: Callable[[], Sequence[pb.RunStatus]], *, every_s: float) -> None:
    """Show the runs until interrupted; while the server doesn't answer, what is shown stays, and says since when.

    Args:
        console: Where to.
        address: Of the server.
        ask: Gives every run with its detail.
        every_s: Seconds between two looks.

    Raises:
        SubbatchError: the server refuses, or can't be reached at the first look.
    """
    runs, answered = ask(), time.monotonic()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        try:
            while True:
                live.update(view(address, runs, age_s=time.monotonic() - answered, width=console.width), refresh=True)
                time.sleep(every_s)
                try:
                    runs, answered = ask(), time.monotonic()
                except UnavailableError:
                    continue
        except KeyboardInterrupt:
            return


def view(address: str, runs: Sequence[pb.RunStatus], *, age_s: float, width: int) -> RenderableType:
    """All runs of a server.

    Args:
        address: Of the server.
        runs: With their details.
        age_s: How old what is known of them is.
        width: Of the terminal, in columns.
    """
    count = f", {len(runs)} run{'s' * (len(runs) != 1)}; Ctrl-C ends"
    head = Text.assemble(("subbatch selector ", "bold"), address, count)
    if age_s > 3.0:
        head.append(f"\n▲ the server hasn't answered for {age_s:.0f} s: what is shown is as old", "bold red")
    if not runs:
        return Group(head, Text("no run yet: start a trainer"))
    return Group(head, *(_run(status, width=width) for status in runs))


def _run(status: pb.RunStatus, *, width: int) -> RenderableType:
    detail, inner = status.detail, max(40, width - 4)
    trained = trained_steps(status)
    progress = Table.grid(padding=(0, 1))
    progress.add_row(
        ProgressBar(total=status.num_steps, completed=trained, width=min(40, inner // 2)),
        f"{trained} of {status.num_steps} steps trained, {max(0, status.next_step - trained - 1)} of at most "
        f"{detail.lookahead} ahead; ranks {ranks_there(status)}",
    )
    parts: list[RenderableType] = [verdict_line(status), progress, _figures(status), lanes(status, width=inner)]
    if detail.sources:
        parts.append(_sources(status))
    return Panel(Group(*parts), title=status.run, title_align="left")


def _figures(status: pb.RunStatus) -> Text:
    detail, verdict = status.detail, status.detail.verdict
    rate = detail.sub_batch_size / verdict.step_seconds if verdict.step_seconds else 0.0
    shown = {
        "step": duration(verdict.step_seconds),
        "training": duration(verdict.training_seconds),
        "selection": duration(verdict.selection_seconds),
        "waited": f"{verdict.wait_fraction:.1%}",
        "rows/s": f"{rate:.1f}",
        "picked": f"{detail.sub_batch_size} of {detail.large_batch_size}",
        "weights kept": " ".join(map(str, status.weights_versions)) or "–",
        "fallback steps": str(status.num_fallback),
    }
    return Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in shown.items())


def _sources(status: pb.RunStatus) -> RenderableType:
    sources = sorted(status.detail.sources.items(), key=lambda item: (-item[1].drawn, item[0]))
    drawn = sum(rows.drawn for _, rows in sources) or 1
    picked = sum(rows.picked for _, rows in sources) or 1
    most = max(max(rows.drawn / drawn, rows.picked / picked) for _, rows in sources) or 1.0
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("source")
    table.add_column("drawn", justify="right")
    table.add_column("picked", justify="right")
    table.add_column("")
    for name, rows in sources[:_MOST_SOURCES]:
        share = rows.picked / picked
        bar = ProgressBar(total=most, completed=share, width=_BAR_WIDTH, complete_style="cyan", finished_style="cyan")
        table.add_row(name, f"{rows.drawn / drawn:.1%}", f"{share:.1%}", bar)
    if len(sources) > _MOST_SOURCES:
        table.add_row(f"and {len(sources) - _MOST_SOURCES} more", "", "", "")
    return table
