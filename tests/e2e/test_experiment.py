"""The experiment command with real servers and trainers: what it leaves, and what it does a second time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ENVIRONMENT, PYTHON, World, run_cli, write_config
from train_client.experiment.plan import comparable

ARMS = ("random_r", "paper")


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    data = {"store": world.store, "heldout_store": world.heldout}
    return write_config(folder, world, data=data, run={"num_steps": 4}, train={"eval_every": 2})


@pytest.fixture(scope="module")
def out(config: Path) -> Path:
    """Two arms, one seed."""
    folder = config.parent / "out"
    result = experiment(config, folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[2/2] paper, seed 3" in result.stdout
    assert f"the report is {folder / 'report.html'}" in result.stdout
    assert "random r" in (folder / "report.html").read_text()
    return folder


def experiment(
    config: Path, out: Path, *more: object, arms: str = "random_r,paper"
) -> subprocess.CompletedProcess[str]:
    arguments = ("--config", config, "--out", out, "--arms", arms, "--seeds", "3,", *more)
    return run_cli("train_client", "experiment", "paper", *arguments, timeout=280)


def results_of(out: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("arms/*/seed-3.json")}


def test_every_arm_leaves_a_result_and_its_logs(out: Path) -> None:
    results = results_of(out)
    assert results.keys() == set(ARMS)
    for name, result in results.items():
        assert (result["arm"], result["seed"], result["config"]["run"]["seed"]) == (name, 3, 3)
        assert [entry["step"] for entry in result["heldout"]] == [0, 2, 4]
        assert (result["rows"]["drawn"], result["rows"]["trained"]) == (48, 24)
        assert result["peak_memory_bytes"]["trainer"] > 1e8
        assert all(0 < seconds for seconds in result["device_seconds"].values())
        assert result["timeline"]
        picked = [sum(row["picked"] for row in shown["rows"]) for shown in result["gallery"]]
        assert picked == [6] * len(picked)
        left = {path.name for path in (out / "work" / name / "seed-3").iterdir()}
        assert left == {"run.toml", "server.log", "train.log"}
    assert results["paper"]["rows"]["scored"] == 48
    assert results["random_r"]["rows"]["scored"] == 0
    about = json.loads((out / "experiment.json").read_text())
    assert ([arm["name"] for arm in about["arms"]], about["seeds"]) == (list(ARMS), [3])


def test_arms_of_a_seed_start_alike_and_draw_the_same_rows(out: Path) -> None:
    one, two = (results_of(out)[name] for name in ARMS)
    assert one["initial_weights"] == two["initial_weights"]
    assert one["heldout"][0] == two["heldout"][0]
    assert one["heldout"][-1] != two["heldout"][-1]
    for shown, other in zip(one["gallery"], two["gallery"], strict=True):
        assert [row["row"] for row in shown["rows"]] == [row["row"] for row in other["rows"]]


def test_a_second_time_nothing_is_run_and_other_settings_are_refused(config: Path, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.glob("arms/*/*.json")}
    again = experiment(config, out)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs are finished already" in again.stdout
    other = experiment(config, out, "--train.learning_rate", "1e-4")
    assert other.returncode == 2
    assert "train.learning_rate 0.005, now 0.0001" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("arms/*/*.json")} == before


@pytest.mark.long
def test_an_arm_that_fails_is_told_and_the_others_are_run(config: Path, tmp_path: Path) -> None:
    # Eight sub-batches of 40 rows are more than the store's 240.
    sizes = ("--selection.large_batch_size", 80, "--selection.sub_batch_size", 40)
    result = experiment(config, tmp_path / "out", *sizes, arms="random_r,random_r_b8r")
    assert result.returncode == 1
    assert results_of(tmp_path / "out").keys() == {"random_r"}
    assert "1 of 2 runs failed" in result.stderr
    assert "selection.large_batch_size 320 is larger than the data" in result.stderr
    assert (tmp_path / "out" / "work" / "random_r_b8r" / "seed-3" / "train.log").exists()


def test_killed_in_the_middle_of_an_arm_it_resumes_with_the_same_result(
    config: Path, out: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    steps = folder / "work" / "paper" / "seed-3" / "train" / "steps-rank0.jsonl"
    arguments = ["--config", config, "--out", folder, "--arms", "paper", "--seeds", "3,"]
    with subprocess.Popen(
        [PYTHON, "-m", "train_client", "experiment", "paper", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        children: list[psutil.Process] = []
        for _ in _while_running(process):
            if steps.exists() and steps.stat().st_size:
                children = psutil.Process(process.pid).children()
                break
        assert len(children) == 2
        process.kill()
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert not results_of(folder)

    resumed = experiment(config, folder, "--keep", arms="paper")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    again, first = results_of(folder)["paper"], results_of(out)["paper"]
    assert again["heldout"] == first["heldout"]
    assert again["gallery"] == first["gallery"]
    journal = folder / "work" / "paper" / "seed-3" / "journal" / "paper-seed-3" / "journal.bin"
    assert first["initial_weights"].encode() in journal.read_bytes()
    assert comparable(again["config"]) == comparable(first["config"])


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_leaves_no_process_behind(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "out"
    log = folder / "work" / "random_r" / "seed-3" / "server.log"
    arguments = ["--config", config, "--out", folder, "--arms", "random_r", "--seeds", "3,"]
    with subprocess.Popen(
        [PYTHON, "-m", "train_client", "experiment", "paper", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in _while_running(process):
            if log.exists() and len(children := psutil.Process(process.pid).children()) == 2:
                break
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert not any(child.is_running() for child in children)


def _while_running(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Look again and again, for as long as there is something to look at."""
    while process.poll() is None:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
    raise AssertionError(f"the experiment ended with {process.returncode}")
