"""The table at the end of an experiment."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from train_client.experiment.summary import summarise
from train_client.experiment.table import summary_table


def write_result(out: Path, arm: str, seed: int, loss: float) -> None:
    path = out / "arms" / arm / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "format": 1,
        "arm": arm,
        "seed": seed,
        "config": {"run": {"num_steps": 4}},
        "heldout": [{"step": 4, "balanced": loss, "natural": loss, "by_source": {"a": loss}}],
        "accuracy": {"sets": {"q": {"correct": 1, "total": 4}}, "by_source": {}},
        "gradient": [],
        "seconds": {"wall": 1.0, "waited": 0.0},
        "device_seconds": {"held": 2.0, "busy": 1.0},
        "peak_memory_bytes": {"trainer": 1, "selector": None},
        "rows": {"drawn": 8, "scored": 0, "trained": 4, "distinct": 4},
        "phases": {"step": 0.25},
    }
    path.write_text(json.dumps(result))


def test_an_arm_half_way_between_the_references_is_said_to_be(tmp_path: Path) -> None:
    arms = [{"name": name, "title": name, "group": "main"} for name in ("random_r", "random_b", "paper", "colm")]
    about = {"format": 1, "name": "paper", "scale": "micro", "smoke": False, "arms": arms, "seeds": [0, 1, 2]}
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    for seed, (low, high) in enumerate([(3.0, 2.0), (3.5, 2.4), (3.25, 2.2)]):
        write_result(tmp_path, "random_r", seed, low)
        write_result(tmp_path, "random_b", seed, high)
        write_result(tmp_path, "paper", seed, (low + high) / 2)
    said = io.StringIO()
    Console(file=said, width=160).print(summary_table(summarise(tmp_path)))
    lines = {line.split()[1]: line for line in said.getvalue().splitlines() if line.startswith("│")}
    assert lines.keys() == {"random_r", "random_b", "paper"}
    assert all(text in lines["paper"] for text in ("2.7250", "-0.5250", "50% [50%, 50%]", "25.0%"))
    assert "3.2500 ± 0.1443" in lines["random_r"]
    assert "%]" not in lines["random_b"]
