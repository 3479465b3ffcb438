"""The small scale's worlds are configurations that differ in their rows alone."""

import pytest
from rich.console import Console

from shared.config import load_config
from shared.errors import ConfigError
from train_client.experiment import micro
from train_client.experiment.arms import ARMS


def test_an_unknown_variant_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match="no variant 'dirty': there are clean, duplicates, wrong"):
        micro.make_micro_world(tmp_path, smoke=True, console=Console(quiet=True), variant="dirty")
    assert not list(tmp_path.iterdir())


def test_every_world_that_an_arm_names_can_be_made():
    assert {arm.variant for arm in ARMS.values()} == set(micro.VARIANTS)


def test_both_configurations_are_complete_and_valid(tmp_path):
    settings = {"steps": 10, "eval_every": 2, "check_every": 1}
    (tmp_path / "run.toml").write_text(micro._CONFIG.format(model="m", here="h", **settings))
    config = load_config(tmp_path / "run.toml")
    assert config.experiment.questions == ("h/corpus/questions.jsonl",)
    assert config.selection.large_batch_size == 2 * config.selection.sub_batch_size
    (tmp_path / "pre.toml").write_text(micro._PRETRAINING.format(model="m", store="s", output="o", steps=10))
    assert load_config(tmp_path / "pre.toml").train.lora is False
