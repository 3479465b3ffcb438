"""The benchmark of what losing nothing costs: its sums are those of its parts, and it does what it times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from selector_server.bench.overhead import command
from selector_server.bench.paired import median_interval
from shared.config import Config, ServerConfig
from shared.errors import ConfigError


def test_the_interval_leaves_out_as_many_at_either_end_as_its_confidence_allows() -> None:
    # Of 9 rounds, the second smallest and second largest hold the median with 1 - 2 · 10 / 512.
    found = median_interval([9, 1, 8, 2, 7, 3, 6, 4, 5])
    assert (found.median, found.low, found.high) == (5, 2, 8)
    assert math.isclose(found.confidence, 1 - 20 / 512)
    alone = median_interval([3.0])
    assert (alone.median, alone.low, alone.high, alone.confidence) == (3.0, 3.0, 3.0, 0.0)


def test_every_step_is_made_durable_and_the_shares_are_the_sums_of_costs_times_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ROUNDS", {"small": 1})
    monkeypatch.setattr(command, "ADAPTERS", {"small": (1000,)})
    monkeypatch.setattr(command, "PRESETS", ("paper",))
    monkeypatch.setattr(command, "_VOCABULARY", 128)
    printed = Console(record=True, width=200)
    result = command.run(out=tmp_path, quick=True, console=printed)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "overhead.png").stat().st_size > 0
    (setting,) = result["settings"]
    for side, parts in setting["share_of_step"].items():
        kinds = ("selection", "weights", "beside")
        for kind in kinds:
            costs = [
                each["per_step"] * each["seconds"]["median"]
                for each in setting["operations"]
                if each["side"] == side and each["kind"] == kind
            ]
            assert costs
            assert math.isclose(parts[kind]["median"], sum(costs))
        assert math.isclose(parts["all"]["median"], sum(parts[kind]["median"] for kind in kinds))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overhead.png", "result.json"], "journals are removed"
    assert "selection: journalled, synced" in printed.export_text()


def test_a_server_that_cannot_begin_ends_the_benchmark_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ADAPTERS", {"small": (1000,)})
    config = Config(server=ServerConfig(tls={"certificate": tmp_path / "none", "key": tmp_path / "none"}))
    with pytest.raises(ConfigError, match="none"):
        command.run(out=tmp_path, quick=True, console=Console(record=True), config=config)
