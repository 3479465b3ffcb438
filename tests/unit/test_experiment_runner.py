"""Order, places, failures and pairing of an experiment's runs; nothing is trained here."""

from __future__ import annotations

import argparse
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared.config import Config
from shared.errors import ConfigError, SubbatchError
from train_client.experiment import runner, seats
from train_client.experiment.arguments import add_arguments, from_flags
from train_client.experiment.arms import find_arms
from train_client.experiment.execute import Watch
from train_client.experiment.folder import describe, held
from train_client.experiment.listing import print_arms
from train_client.experiment.plan import Plan, Run, make_plan
from train_client.experiment.seats import Seat


def base_of(**branches: dict[str, Any]) -> Config:
    return Config.model_validate({"train": {"device": "cpu"}, "run": {"num_steps": 3}} | branches)


def plan_of(out: Path, *names: str, seeds: tuple[int, ...] = (0,), base: Config | None = None) -> Plan:
    return make_plan(find_arms(names), {"": base or base_of()}, seeds, out=out)


class Machine:
    """Stands in for running an arm: notes who ran where and beside whom."""

    def __init__(self, *, together: int = 1) -> None:
        self.ran: list[tuple[str, int, Seat, bool]] = []
        self.fails: dict[str, Exception] = {}
        self.weights: dict[str, str] = {}
        self._meet = threading.Barrier(together)

    def execute(self, run: Run, seat: Seat, *, watch: Watch, in_detail: bool) -> dict[str, Any]:
        if not run.scores:
            self._meet.wait(timeout=60)
        self.ran.append((run.arm.name, run.seed, seat, in_detail))
        run.work.mkdir(parents=True)
        watch.report("training", 1)
        if run.arm.name in self.fails:
            raise self.fails[run.arm.name]
        (run.work / "journal").mkdir()
        (run.work / "train.log").write_text("")
        return {
            "format": 1,
            "arm": run.arm.name,
            "initial_weights": self.weights.get(run.arm.name, "same"),
            "fingerprints": {},
            "heldout": [{"step": 0, "balanced": 1.0}],
            "accuracy": None,
            "seconds": {"wall": 1.0},
            "config": run.config.model_dump(mode="json"),
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(runner, "execute", machine.execute)
    monkeypatch.setattr(seats, "available_cores", lambda: [0, 1])
    return machine


def run(plan: Plan, *, keep: bool = False) -> tuple[list[str], str]:
    said = io.StringIO()
    return runner.run_all(plan, console=Console(file=said, width=200), keep=keep), said.getvalue()


def test_a_seed_is_finished_before_the_next_and_only_the_lowest_is_told_in_detail(
    machine: Machine, tmp_path: Path
) -> None:
    failures, said = run(plan_of(tmp_path, "paper", "random_r", "matched", seeds=(2, 1)))
    assert failures == []
    assert [(arm, seed, detail) for arm, seed, _, detail in machine.ran] == [
        ("random_r", 2, False), ("paper", 2, False), ("matched", 2, False),
        ("random_r", 1, True), ("paper", 1, True), ("matched", 1, True),
    ]  # fmt: skip
    assert "[6/6] matched, seed 1, held-out loss 1.0000" in said


def test_arms_that_do_not_score_run_two_at_a_time_on_all_cores(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path
) -> None:
    machine = Machine(together=2)  # each of them waits for another one to run
    monkeypatch.setattr(runner, "execute", machine.execute)
    run(plan_of(tmp_path, "random_r", "random_b", "random_r_uniform", "random_b_uniform", "paper"))
    places = {arm: seat for arm, _, seat, _ in machine.ran}
    assert all(places[arm] == Seat((0, 1), (0, 1), on_cores=True) for arm in places if arm != "paper")
    assert places["paper"] == Seat((0,), (1,), on_cores=True)


@pytest.mark.parametrize(
    ("cores", "settings", "scoring", "others"),
    [
        ([0, 1, 2], {}, Seat((0, 1), (2,), on_cores=True), 2),
        ([5], {}, Seat((5,), (5,), on_cores=True), 1),
        ([], {}, Seat((), (), on_cores=True), 1),
        ([0, 1], {"parallel": False}, Seat((0,), (1,), on_cores=True), 1),
        ([0, 1], {"num_processes": 2}, Seat((0,), (1,), on_cores=True), 1),
        ([0, 1, 2], {"trainer_devices": (2,), "selector_devices": (0,)}, Seat((2,), (0,), on_cores=True), 2),
    ],
)
def test_sides_get_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch, cores: list[int], settings: dict[str, Any], scoring: Seat, others: int
) -> None:
    monkeypatch.setattr(seats, "available_cores", lambda: cores)
    seat, shared = seats.seats(base_of(experiment=settings))
    assert (seat, len(shared)) == (scoring, others)


def test_accelerators_are_named_as_given_and_used_by_one_arm_at_a_time() -> None:
    config = base_of(train={"device": "auto"}, experiment={"trainer_devices": (0, 1), "selector_devices": (2,)})
    assert seats.seats(config) == (seat := Seat((0, 1), (2,), on_cores=False), [seat])


def test_cores_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "available_cores", lambda: [0, 1])
    with pytest.raises(ConfigError, match=r"cores \[7\] can't be used, this process has \[0, 1\]"):
        seats.seats(base_of(experiment={"selector_devices": (1, 7)}))


def test_a_failing_arm_is_told_and_does_not_keep_others_from_running(machine: Machine, tmp_path: Path) -> None:
    machine.fails = {"random_r": SubbatchError("no rows"), "colm": ZeroDivisionError("oh")}
    plan = plan_of(tmp_path, "random_r", "paper", "colm", "matched")
    failures, said = run(plan)
    assert failures == ["random_r, seed 0: no rows", "colm, seed 0: ZeroDivisionError('oh')"]
    assert said.count("failed") == 2
    assert [run.result.exists() for run in plan.runs] == [False, True, False, True]
    left = {run.arm.name: sorted(path.name for path in run.work.iterdir()) for run in plan.runs}
    assert (left["random_r"], left["paper"]) == ([], ["train.log"])


def test_journals_are_kept_where_that_is_asked_for(machine: Machine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "paper")
    run(plan, keep=True)
    assert sorted(path.name for path in plan.runs[0].work.iterdir()) == ["journal", "train.log"]


def test_a_run_that_began_with_other_weights_than_its_seeds_others_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.weights = {"matched": "other"}
    failures, _ = run(plan_of(tmp_path, "paper", "matched"))
    (line,) = failures
    assert "began with initial weights other, arm paper with same" in line
    assert not (tmp_path / "arms" / "matched" / "seed-0.json").exists()
    machine.weights = {}
    machine.ran.clear()
    for file in tmp_path.glob("work/*/*"):
        file.rename(file.with_name("old"))
    assert run(plan_of(tmp_path, "paper", "matched"))[0] == []
    assert [arm for arm, *_ in machine.ran] == ["matched"]


def test_an_interrupted_experiment_starts_nothing_more(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_failure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(tmp_path, "random_r", "paper", "matched", seeds=(0, 1)))
    assert {arm for arm, *_ in machine.ran} <= {"random_r"}


# ---- the command's arguments and folder


def parsed(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_flags(parser.parse_args(["paper", "--scale", "micro", *arguments]))


@pytest.mark.parametrize(("text", "seeds"), [("3", (0, 1, 2)), ("7,", (7,)), ("2,0,2", (2, 0)), ("1", (0,))])
def test_seeds_are_how_many_or_which(text: str, seeds: tuple[int, ...]) -> None:
    assert parsed("--seeds", text) == {"experiment.seeds": seeds}


@pytest.mark.parametrize("text", ["0", "-1,", "a", ","])
def test_seeds_that_are_neither_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parsed(f"--seeds={text}")


def test_short_options_stand_for_keys() -> None:
    assert parsed("--arms", "main, paper", "--steps", "7") == {
        "experiment.arms": ("main", "paper"),
        "run.num_steps": 7,
    }


def test_a_folder_of_something_else_or_of_a_running_experiment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds files that no experiment wrote"), held(tmp_path / "full"):
        pass
    with held(tmp_path / "new"), pytest.raises(ConfigError, match="is running"), held(tmp_path / "new"):
        pass
    with held(tmp_path / "new"):
        pass


def test_what_a_folder_is_about_grows_and_does_not_change(tmp_path: Path) -> None:
    about: dict[str, Any] = {"name": "paper", "scale": "micro", "base": base_of()}
    describe(tmp_path, **about, smoke=False, plan=plan_of(tmp_path, "paper", seeds=(1,)))
    describe(tmp_path, **about, smoke=False, plan=plan_of(tmp_path, "random_r", "weighting", seeds=(0,)))
    content = json.loads((tmp_path / "experiment.json").read_text())
    assert [arm["name"] for arm in content["arms"]] == ["random_r", "paper", "paper_gamma"]
    assert content["seeds"] == [0, 1]
    assert content["arms"][0]["group"] == "main"
    with pytest.raises(ConfigError, match="is of smoke False, not True"):
        describe(tmp_path, **about, smoke=True, plan=plan_of(tmp_path, "paper"))


def test_the_list_names_every_arm_and_counts_runs() -> None:
    said = io.StringIO()
    print_arms(Console(file=said, width=200), base_of(experiment={"seeds": (0, 1)}), ["probes"])
    assert "paper_probes_64" in said.getvalue()
    assert "4 different arms of these 5 × 2 seeds = 8 runs" in said.getvalue()
