"""`bench overlap` with real processes: that arms take turns, that the floor is the default arm without its selector."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shared.config import Config, load_config
from tests.support import World, run_cli, write_config
from train_client.bench.arms import ARMS, DEFAULT, FLOOR, INLINE
from train_client.bench.devices import Devices, find_devices
from train_client.bench.interleave import Schedule, Turns, take_turns
from train_client.bench.job import Job
from train_client.outcome import Outcome
from train_client.process import available_cores

SCHEDULE = Schedule(rounds=2, steps=4)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(len(available_cores()) < 2, reason="both sides need a core of their own"),
]


@pytest.fixture(scope="module")
def base(world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(write_config(tmp_path_factory.mktemp("bench"), world))


@pytest.fixture(scope="module")
def devices() -> Devices:
    return find_devices("cpu", "cpu")


@pytest.fixture(scope="module")
def recording(base: Config, devices: Devices, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the default arm leaves, undisturbed from its first step to its last."""
    folder = tmp_path_factory.mktemp("recording") / "run"
    config = ARMS[DEFAULT].config(base, recording=Path())
    with Job(ARMS[DEFAULT], config, folder, devices, num_steps=SCHEDULE.num_steps) as job:
        job.start()
        job.finish()
        return job.output


@pytest.fixture(scope="module")
def turns(
    base: Config, devices: Devices, recording: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Turns], list[str], dict[str, Job]]:
    folder, jobs, told = tmp_path_factory.mktemp("turns"), dict[str, Job](), list[str]()

    def make(name: str, number: int) -> Job:
        config = ARMS[name].config(base, recording=recording)
        jobs[name] = Job(ARMS[name], config, folder / f"{name}-{number}", devices, num_steps=SCHEDULE.num_steps)
        return jobs[name]

    return take_turns(make, (FLOOR, DEFAULT), SCHEDULE, told=told.append), told, jobs


def test_the_floor_trains_as_the_default_arm_does_bit_for_bit_without_a_selector(
    turns: tuple[dict[str, Turns], list[str], dict[str, Job]], recording: Path
) -> None:
    recorded = Outcome.read(recording).ranks[0]
    found = {name: each.rows for name, each in turns[0].items()}
    for rows in found.values():
        assert len(rows) > SCHEDULE.window(1).stop
        for key in ("rows", "weights", "loss"):
            assert [row[key] for row in rows] == [row[key] for row in recorded[: len(rows)]]
    assert all(row["wire_bytes"] == 0 for row in found[FLOOR])
    assert all(row["selector"]["score_seconds"] > 0 for row in found[DEFAULT])


def test_arms_take_turns_and_what_counts_was_trained_in_them(
    turns: tuple[dict[str, Turns], list[str], dict[str, Job]],
) -> None:
    found, told, jobs = turns
    assert [line.split()[-1] for line in told[1:]] == [FLOOR, DEFAULT, DEFAULT, FLOOR]
    times = []
    for name, each in found.items():
        assert len(jobs[name].pauses) == SCHEDULE.rounds
        for number, steps in enumerate(each.steps):
            assert {step.number for step in steps} <= set(SCHEDULE.window(number))
            rows = [each.rows[step.number] for step in steps]
            ends = [row["wait_started_ns"] + row["step_seconds"] * 1e9 for row in rows]
            times.append((min(row["wait_started_ns"] for row in rows), max(ends)))
    ordered = sorted(times)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ordered))


def test_started_anew_for_its_turn_an_arm_measures_the_same_steps(
    base: Config, devices: Devices, tmp_path: Path
) -> None:
    schedule, arm = Schedule(rounds=1, steps=2, restart=True), ARMS[INLINE]

    def make(name: str, number: int) -> Job:
        config = arm.config(base, recording=Path())
        return Job(arm, config, tmp_path / f"{name}-{number}", devices, num_steps=schedule.num_steps)

    turns = take_turns(make, (INLINE,), schedule, told=lambda _: None)[INLINE]
    assert [[step.number for step in steps] for steps in turns.steps] == [[5, 6]]
    # The selection of a step is made at the end of the one before.
    assert all(turns.rows[n]["push_seconds"] > turns.rows[n + 1]["selector"]["score_seconds"] > 0 for n in (5, 6))


def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_cli("train_client", "bench", "overlap", "--out", out, "--trainer-device", "tpu")
    assert result.returncode == 2
    assert "--trainer-device 'tpu' is no device: give cpu" in result.stderr
    assert not (out / "work").exists()
