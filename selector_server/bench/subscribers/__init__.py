"""Hundreds of ranks that subscribe to one run: `selector-server bench subscribers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console


def run(*, out: Path, quick: bool, console: Console) -> dict[str, Any]:
    """Measure, print a table, draw `subscribers.png`, write `result.json` under `out`.

    Raises:
        ConfigError: `out` can't be written.
        SelectionError: a rank didn't receive every selection once and in order.
    """
    from selector_server.bench.subscribers.command import compare  # torch, which the ranks' process has no use for

    return compare(out=out, quick=quick, console=console)
