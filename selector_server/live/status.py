"""What a running server is doing, once: a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selector_server.live.words import LEVELS, completed_by_rank, ranks_there
from shared.pb.v1 import selector_pb2 as pb

_COLUMNS = (
    "run", "incarnation", "selected", "fallback", "completed by rank", "ranks", "weights kept", "scoring processes",
    "sent", "waits for",
)  # fmt: skip


def status_view(address: str, runs: Sequence[pb.RunStatus]) -> RenderableType:
    """The table, and below in a sentence for each run who waits for whom.

    Args:
        address: Of the server.
        runs: With their details.
    """
    return Group(status_table(address, runs), *map(verdict_line, runs))


def status_table(address: str, runs: Sequence[pb.RunStatus]) -> Table:
    """A row for each run.

    Args:
        address: Of the server.
        runs: Theirs.
    """
    table = Table(title=f"runs on {address}")
    for column in _COLUMNS:
        table.add_column(column)
    for status in runs:
        table.add_row(
            status.run,
            str(status.incarnation),
            f"{status.next_step}/{status.num_steps}",
            str(status.num_fallback),
            completed_by_rank(status),
            ranks_there(status),
            " ".join(map(str, status.weights_versions)) or "–",
            str(status.scoring_processes),
            f"{status.sent_bytes / 2**20:.1f} MiB",
            status.waits_for,
        )
    return table


def verdict_line(status: pb.RunStatus) -> RenderableType:
    """Who waits for whom in a run, and what helps."""
    verdict = status.detail.verdict
    mark, style = LEVELS[verdict.level]
    line = Text.assemble((f"{status.run}: ", "bold"), (mark, f"bold {style}"), f"  {verdict.headline}")
    if not verdict.remedy:
        return line
    return Group(line, Padding(Text(f"what helps: {verdict.remedy}", "dim"), (0, 0, 0, 4)))
