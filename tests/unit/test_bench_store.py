"""`bench store`: made-up stores are whole stores, its figures are there, and memory doesn't hold the rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from selector_server.bench.store import command, run, serving
from selector_server.bench.store.serving import Order, serve
from selector_server.bench.store.synthetic import BYTES_PER_ROW, MAX_TOKENS, VOCABULARY, write_synthetic
from shared.dataset import Store
from shared.errors import ConfigError

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


def test_a_made_up_store_has_the_rows_sources_and_size_that_are_asked_for(tmp_path: Path) -> None:
    rows = 70_000  # more than a record batch
    manifest = write_synthetic(tmp_path / "store", rows=rows)
    store = Store.open(tmp_path / "store")
    assert len(store) == rows == sum(store.source_rows)
    assert min(store.source_rows) > 0
    assert max(store.source_rows) > 500 * min(store.source_rows)
    assert manifest.rows_bytes == pytest.approx(rows * BYTES_PER_ROW, rel=0.02)
    index = np.random.default_rng(0).choice(rows, 500)
    assert max(len(row.input_ids) for row in store.rows(index)) <= MAX_TOKENS
    assert max(row.input_ids.max() for row in store.rows(index)) < VOCABULARY
    assert store.origins(index).tolist() == index.tolist()


def test_the_command_prints_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "serve", lambda folder, order: serving._serve(folder, order))
    monkeypatch.setattr(command, "_LARGE_BATCH", 64)
    console = Console(file=io.StringIO(), width=140)
    run(out=tmp_path, quick=True, console=console, rows=20_000)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"] == {"small": 10_000, "large": 20_000}
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    large = result["measured"]["large"]
    assert f"{large['draw_ms']['uniform']:.2f}" in printed
    assert f"{large['peak_mb']:.0f}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "store.png"]


@pytest.mark.parametrize(
    ("rows", "message"), [(100, "has 10,000: give at least as many"), (10**13, "GB left: give fewer --rows")]
)
def test_rows_that_cannot_be_measured_are_refused(tmp_path: Path, rows: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(out=tmp_path, quick=True, console=Console(file=io.StringIO()), rows=rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_servers_memory_does_not_grow_with_the_rows(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Both stores are larger than what may be mapped at a time, and both are drawn from until that is full."""
    order, few, many = Order(large_batch_size=4096, draws=5, selections=2), 1_000_000, 5_000_000
    held = {}
    for rows in (few, many):
        write_synthetic(tmp_path / str(rows), rows=rows)
        served = serve(tmp_path / str(rows), order)
        assert served.peak_bytes is not None
        held[rows] = served.peak_bytes
    per_row = (held[many] - held[few]) / (many - few)
    # A row is 272 bytes in the file. Where rows begin, 4 bytes each, stays mapped up to 64 MiB.
    record_property("bytes per further row", per_row)
    assert per_row < 8, f"peak memory: {held}"
