"""Which runs are left to do: what is the same, what is finished, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.config import Config
from shared.errors import ConfigError
from train_client.experiment.arms import ARMS, find_arms, resolve
from train_client.experiment.plan import Plan, make_plan, merge_equal, portable


def base_of(out: Path, **branches: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {
        "model": {"path": f"{out}/world/model"},
        "data": {"store": f"{out}/world/store"},
        "selection": {"large_batch_size": 32, "sub_batch_size": 16},
        "run": {"num_steps": 10, "staleness": 1},
    }
    for branch, keys in branches.items():
        tree.setdefault(branch, {}).update(keys)
    return Config.model_validate(tree)


def plan_of(out: Path, names: list[str], seeds: tuple[int, ...] = (0, 1), **branches: dict[str, Any]) -> Plan:
    return make_plan(find_arms(names), {"": base_of(out, **branches)}, seeds, out=out)


def finish(plan: Plan, arm: str, seed: int) -> Path:
    (run,) = (run for run in plan.runs if (run.arm.name, run.seed) == (arm, seed))
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(json.dumps({"format": 1, "config": portable(run.config, run.out)}))
    return run.result


def test_runs_go_seed_by_seed_so_that_an_early_end_leaves_whole_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ["paper", "random_r"], (4, 2))
    assert [(run.seed, run.arm.name) for run in plan.to_do] == [
        (4, "random_r"), (4, "paper"), (2, "random_r"), (2, "paper"),
    ]  # fmt: skip
    assert all(run.config.run.seed == run.seed for run in plan.runs)


def test_arms_that_are_equal_with_this_base_run_once_and_belong_to_all_groups(tmp_path: Path) -> None:
    merged = {
        arm.name: arm
        for arm in merge_equal(find_arms(["main", "staleness", "ratio"]), {"": base_of(tmp_path)}, out=tmp_path)
    }
    assert not {"paper_stale_1", "matched_stale_1", "random_r_b2r", "random_b2r", "paper_b2r"} & merged.keys()
    assert {"main", "staleness", "ratio"} <= set(merged["matched"].groups)
    assert merged["matched_b4r"].references == ("random_r_b4r", "random_b4r")
    fresh = merge_equal(find_arms(["main", "staleness"]), {"": base_of(tmp_path, run={"staleness": 0})}, out=tmp_path)
    assert "paper_stale_1" in {arm.name for arm in fresh}
    assert "paper_stale_0" not in {arm.name for arm in fresh}


def test_a_reference_that_was_merged_is_named_by_what_it_was_merged_into(tmp_path: Path) -> None:
    bases = {"": base_of(tmp_path, selection={"large_batch_size": 64, "sub_batch_size": 16})}
    merged = {arm.name: arm for arm in merge_equal(find_arms(["main", "ratio"]), bases, out=tmp_path)}
    assert "random_b4r" not in merged
    assert merged["matched"].references == ("random_r", "random_b")
    assert merged["matched_b2r"].references == ("random_r_b2r", "random_b2r")


def test_a_finished_run_is_kept_and_the_rest_is_left_to_do(tmp_path: Path) -> None:
    names = ["random_r", "paper"]
    finish(plan_of(tmp_path, names), "paper", 1)
    plan = plan_of(tmp_path, names)
    assert [(run.arm.name, run.seed) for run in plan.finished] == [("paper", 1)]
    assert [(run.arm.name, run.seed) for run in plan.to_do] == [("random_r", 0), ("paper", 0), ("random_r", 1)]


def test_where_a_run_happens_does_not_make_it_another_run(tmp_path: Path) -> None:
    finish(plan_of(tmp_path, ["paper"]), "paper", 0)
    elsewhere = {
        "server": {"threads": 2, "journal": "elsewhere"},
        "client": {"wait_timeout_s": 5.0},
        "train": {"threads": 1, "trackers": ("tensorboard",), "output": "elsewhere"},
        "experiment": {"selector_devices": (0,), "parallel": False, "seeds": (0,)},
        "run": {"name": "other"},
    }
    assert len(plan_of(tmp_path, ["paper"], **elsewhere).finished) == 1


def test_a_moved_folder_is_still_finished(tmp_path: Path) -> None:
    finish(plan_of(tmp_path / "a", ["paper"]), "paper", 0)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(plan_of(tmp_path / "b", ["paper"]).finished) == 1
    assert str(tmp_path) not in (tmp_path / "b" / "arms" / "paper" / "seed-0.json").read_text()


@pytest.mark.parametrize(
    ("branch", "key", "value", "said"),
    [
        ("train", "learning_rate", 1e-3, r"train.learning_rate 2e-05, now 0.001"),
        ("run", "num_steps", 11, r"run.num_steps 10, now 11"),
        ("experiment", "questions", ("more.jsonl",), r"experiment.questions \[\], now \['more.jsonl'\]"),
        ("data", "store", "other", r"data.store 'OUT/world/store', now 'other'"),
    ],
)
def test_a_result_of_another_configuration_is_refused_by_key(
    tmp_path: Path, branch: str, key: str, value: object, said: str
) -> None:
    path = finish(plan_of(tmp_path, ["paper"]), "paper", 0)
    with pytest.raises(ConfigError, match=said) as caught:
        plan_of(tmp_path, ["paper"], **{branch: {key: value}})
    assert f"choose another --out, or delete {path}" in str(caught.value)


def test_a_key_that_is_newer_than_a_result_had_its_default(tmp_path: Path) -> None:
    path = finish(plan_of(tmp_path, ["paper"]), "paper", 0)
    result = json.loads(path.read_text())
    del result["config"]["train"]["weight_decay"]
    path.write_text(json.dumps(result))
    assert len(plan_of(tmp_path, ["paper"]).finished) == 1
    with pytest.raises(ConfigError, match=r"train.weight_decay 0.0, now 0.1"):
        plan_of(tmp_path, ["paper"], train={"weight_decay": 0.1})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "config": 3}', '{"format": 2}'])
def test_a_file_that_is_no_result_is_not_taken_for_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "arms" / "paper" / "seed-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ConfigError, match="or delete"):
        plan_of(tmp_path, ["paper"])


def test_an_arm_of_other_data_needs_that_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arm 'random_r_clean' needs other data"):
        plan_of(tmp_path, ["data"])
    bases = {"": base_of(tmp_path), "clean": base_of(tmp_path, data={"store": "clean"})}
    plan = make_plan([ARMS["random_r"], ARMS["random_r_clean"]], bases, (0,), out=tmp_path)
    assert [str(run.config.data.store) for run in plan.runs] == [f"{tmp_path}/world/store", "clean"]
    assert resolve(bases["clean"], ARMS["random_r_clean"], seed=0).selection == plan.runs[0].config.selection
