"""The table of arms: every arm is a valid configuration, and differs from the base in what it says and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.config import Config, SelectionConfig, load_config
from shared.errors import ConfigError
from train_client.experiment import arms as table
from train_client.experiment.arms import ARMS, GROUPS, Times, find_arms, resolve
from train_client.run_config import write_config

PHI2 = Path(table.__file__).with_name("phi2.toml")
RECIPE = Path(__file__).parents[2] / "deploy" / "configs" / "phi2-mathinstruct.toml"
BASE = Config.model_validate(
    {
        "selection": {"large_batch_size": 32, "sub_batch_size": 16, "sparsify_k": 512, "num_probes": 2},
        "run": {"num_steps": 40, "staleness": 2},
        "train": {"lora": {"rank": 8}, "learning_rate": 1e-3},
    }
)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_configuration_that_its_file_says_again(name: str, tmp_path: Path) -> None:
    config = resolve(BASE, ARMS[name], seed=3)
    assert load_config(write_config(config, tmp_path / "run.toml")) == config
    assert (config.run.seed, config.run.name) == (3, f"{name}-seed-3")


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_changes_what_it_names(name: str) -> None:
    config = resolve(BASE, ARMS[name], seed=0)
    for key, value in ARMS[name].overrides.items():
        branch, field = key.split(".")
        if isinstance(value, Times):
            base = {"large_batch_size": 32, "sub_batch_size": 16, "sparsify_k": 512, "num_steps": 40}
            value = base[value.key.split(".")[1]] * value.factor
        assert getattr(getattr(config, branch), field) == value
    assert config.train == BASE.train
    assert (config.model, config.data) == (BASE.model, BASE.data)


def test_an_arm_is_what_it_says_whatever_method_the_base_has() -> None:
    base = Config.model_validate(
        {"selection": {"preset": "colm", "sampling": "uniform", "soft_labels": True, "sketch_size": 256}}
    )
    paper = resolve(base, ARMS["paper"], seed=0).selection
    assert paper == SelectionConfig(sketch_size=256)
    matched = resolve(base, ARMS["matched"], seed=0).selection
    assert matched == SelectionConfig(preset="matched", sketch_size=256)
    assert resolve(base, ARMS["colm"], seed=0).selection == SelectionConfig(preset="colm", sketch_size=256)


def test_the_main_arms_are_what_the_comparison_needs() -> None:
    chosen = {arm.name: resolve(BASE, arm, seed=0).selection for arm in find_arms(["main"])}
    assert all(chosen[name].sub_batch_size == 32 for name in ("random_b", "random_b_uniform"))
    assert all(chosen[name].sub_batch_size == 16 for name in ("random_r", "random_r_uniform", "paper", "matched"))
    assert {name for name, selection in chosen.items() if not selection.scores} == {
        "random_r", "random_b", "random_r_uniform", "random_b_uniform",
    }  # fmt: skip
    assert {name for name, selection in chosen.items() if selection.sampling == "uniform"} == {
        "random_r_uniform", "random_b_uniform",
    }  # fmt: skip
    pivotal = chosen["pivotal"]
    assert (pivotal.pick, pivotal.estimator, pivotal.gradient_of) == ("local_pivotal", "exact", "last_blocks")


def test_references_train_on_random_rows_of_both_sizes_at_the_same_steps_and_data() -> None:
    for arm in ARMS.values():
        config = resolve(BASE, arm, seed=0)
        low, high = (resolve(BASE, ARMS[name], seed=0) for name in arm.references)
        sizes = (config.selection.large_batch_size, config.run.num_steps, config.selection.sampling)
        if arm.name.startswith("random_b"):
            sizes = (low.selection.large_batch_size, *sizes[1:])
        else:
            assert low.selection.sub_batch_size == config.selection.sub_batch_size, arm.name
        for other, name in ((low, arm.references[0]), (high, arm.references[1])):
            assert other.selection.pick == "random"
            assert (other.selection.large_batch_size, other.run.num_steps, other.selection.sampling) == sizes, arm.name
            assert ARMS[name].variant == arm.variant
        assert high.selection.sub_batch_size == high.selection.large_batch_size


def test_every_group_has_arms_one_of_them_in_the_smoke_test_and_every_arm_a_known_group() -> None:
    assert {group for arm in ARMS.values() for group in arm.groups} == set(GROUPS)
    smoked = {group for arm in ARMS.values() if arm.in_smoke for group in arm.groups}
    assert smoked >= set(GROUPS) - {"data"}


def test_groups_names_and_all_are_found_once_and_in_order() -> None:
    assert [arm.name for arm in find_arms(["weighting", "paper", "random_r"])] == ["random_r", "paper", "paper_gamma"]
    assert find_arms(["all"]) == list(ARMS.values())
    with pytest.raises(ConfigError, match="no arm or group is called 'papr': did you mean 'paper'"):
        find_arms(["papr"])


def test_an_arm_that_does_not_go_with_the_base_is_named() -> None:
    base = Config.model_validate({"run": {"lookahead": 1}})
    with pytest.raises(ConfigError, match="arm 'paper_stale_4' doesn't go with the configuration: lookahead 1"):
        resolve(base, ARMS["paper_stale_4"], seed=0)


def test_the_papers_scale_is_the_papers_recipe() -> None:
    scale, recipe = load_config(PHI2), load_config(RECIPE)
    assert (scale.model, scale.selection, scale.data.store) == (recipe.model, recipe.selection, recipe.data.store)
    assert scale.run == recipe.run.model_copy(update={"name": scale.run.name})
    own = {"output", "save_every", "trackers", "eval_every"}
    assert scale.train.model_dump(exclude=own) == recipe.train.model_dump(exclude=own)
    assert len(scale.experiment.trainer_devices) == scale.experiment.num_processes == 4
    for arm in find_arms(["all"]):
        resolve(scale, arm, seed=0)
