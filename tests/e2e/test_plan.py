"""`train-client plan` as a user runs it: what it prints, writes, draws, and refuses."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tests.support import run_cli
from train_client.demo.canvas import BLUE, ORANGE, PURPLE, VERMILION
from train_client.plan.costs import Costs


def test_without_arguments_the_papers_run_is_planned_and_its_assumptions_are_told(tmp_path: Path) -> None:
    out = run_cli("train_client", "plan", "--out", str(tmp_path))
    assert out.returncode == 0, out.stderr
    text = " ".join(out.stdout.split())
    assert "No costs were given, so these are the paper's: 2.78 billion parameters" in text
    assert "sets the pace" in text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["layout"]["trainers"], plan["costs"]["large_batch_size"]) == (4, 128)
    assert not (tmp_path / "plan.png").exists()


def test_a_simulated_plan_agrees_with_the_closed_form_and_is_drawn(tmp_path: Path) -> None:
    costs = tmp_path / "costs.toml"
    costs.write_text(
        "train_seconds = 1.92\nscore_seconds = 1.28\nsnapshot_seconds = 0.02\nupload_seconds = 0.05\n"
        "load_seconds = 0.01\ntrainers = 2\n"
    )
    arguments = ("--costs", str(costs), "--selectors", "2", "--simulate", "--jitter", "0.02", "--steps", "100")
    out = run_cli("train_client", "plan", "--out", str(tmp_path), *arguments)
    assert out.returncode == 0, out.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["arms"]["planned"]["step_seconds"] == pytest.approx(0.98)
    assert plan["arms"]["inline"]["step_seconds"] == pytest.approx(1.6)
    assert plan["selectors_needed"] == 2
    simulated = plan["simulated"]["arms"]["planned"]
    assert simulated["step_seconds"] == pytest.approx(0.98, rel=0.05)
    assert simulated["wait_fraction"] < 0.02
    assert plan["simulated"]["by_selectors"]["1"]["wait_fraction"] > 0.2
    assert re.search(r"2 selector devices are enough for trainers never to wait", " ".join(out.stdout.split()))
    pixels = imread(tmp_path / "plan.png")[:, :, :3]
    assert pixels.shape[1] == 2600
    for color in (BLUE, ORANGE, PURPLE, VERMILION):
        assert np.all(np.abs(pixels - to_rgb(color)) < 0.01, axis=2).sum() > 1000


def test_a_benchmarks_arms_are_predicted_beside_what_was_measured(tmp_path: Path) -> None:
    seconds = {"floor": 1.0, "large_batch": 2.0, "inline": 1.9, "staleness_0": 2.2, "staleness_1": 1.25}
    arms = {name: {"step_seconds": each, "wait_fraction": 0.0} for name, each in seconds.items()}
    costs = Costs(16, 32, 1.0, 2.0, 0.8, 0.9, upload_seconds=0.3)
    (tmp_path / "result.json").write_text(json.dumps({"arms": arms, "plan": {"costs": asdict(costs)}}))
    out = run_cli("train_client", "plan", "--out", tmp_path, "--measured", tmp_path, "--upload-seconds", "0.7")
    assert out.returncode == 0, out.stderr
    assert "Arithmetic" not in out.stdout
    table = out.stdout[out.stdout.index("Predicted and measured") :]
    # (train 1 + upload 0.7 + select 0.8) / 2, for one trainer as in the benchmark.
    assert re.search(r"S = 1, K = 1 *│ *1.25 s *│ *1.25 s *│ *[+-]0.0%", table)
    compared = json.loads((tmp_path / "plan.json").read_text())["compared"]
    assert {name: each["measured"] for name, each in compared.items()} == arms
    assert compared["staleness_0"]["predicted"]["step_seconds"] == pytest.approx(2.5)


def test_what_can_not_be_planned_is_refused_in_one_line(tmp_path: Path) -> None:
    out = run_cli("train_client", "plan", "--out", str(tmp_path), "--staleness", "3", "--lookahead", "2")
    assert out.returncode == 2
    assert out.stderr.strip().startswith("error: lookahead 2 is less than staleness 3")
    assert len(out.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
