"""The demo, short: every stage runs and leaves what the README promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import run_cli

SOURCES = 14


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_leaves_a_summary_and_pictures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run_cli("train_client", "demo", "--out", out, "--steps", 6, timeout=580)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["world_size"], summary["staleness"], summary["push_every"]) == (6, 2, 1, 1)
    assert summary["large_batch_size"] == 2 * summary["sub_batch_size"]
    assert 0 <= summary["wait_fraction"] < 1
    assert {"wait", "train", "selector_draw", "selector_score", "selector_pick"} <= summary["step_seconds"].keys()
    assert len(summary["loss"]) == 3
    assert all(len(arm["by_source"]) == SOURCES for arm in summary["loss"].values())
    shares = summary["source_share"]
    assert len(shares) == SOURCES
    for column in ("file", "large_batches", "sub_batches"):
        assert sum(share[column] for share in shares.values()) == pytest.approx(1)
    # The draws are equal by source, the file isn't: 192 draws of 14 sources are off by at most 5 deviations.
    spread = 5 * (1 / SOURCES * (1 - 1 / SOURCES) / (6 * 32)) ** 0.5
    assert all(abs(share["large_batches"] - 1 / SOURCES) < spread for share in shares.values())
    assert max(share["file"] for share in shares.values()) > 0.3
    pictures = ("timeline.png", "loss.png", "loss-by-source.png", "source-shares.png")
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    again = run_cli("train_client", "demo", "--out", tmp_path, "--steps", 6)
    assert again.returncode == 1
    assert "no demo wrote" in again.stderr
