"""What a store of many rows costs a server: `selector-server bench store --rows 10_000_000`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

DEFAULT_ROWS, QUICK_ROWS = 10_000_000, 1_000_000


def run(*, out: Path, quick: bool, console: Console, rows: int | None = None) -> dict[str, Any]:
    """Measure, print a table, draw `store.png`, write `result.json` under `out`.

    Raises:
        ConfigError: `out` can't be written, has no room for the stores, or the rows are too few.
    """
    from selector_server.bench.store.command import compare  # torch, which the rows' writer has no use for

    return compare(out=out, quick=quick, console=console, rows=rows or (QUICK_ROWS if quick else DEFAULT_ROWS))
