"""Configuration files of Accelerate and DeepSpeed: read by their own loaders, and trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import files, name

ACCELERATE, DEEPSPEED = files("accelerate/*.yaml"), files("deepspeed/*.json")


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_reads_its_files_and_no_key_is_unknown_to_it(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    load_config_from_file(str(path))  # which refuses unknown keys, but not those of a plugin
    parser = launch_command_parser()
    given, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "train.py"]))
    file = yaml.safe_load(path.read_text())
    assert given.num_processes == file["num_processes"]
    known = {action.dest for action in parser._actions}
    for plugin in ("deepspeed_config", "fsdp_config"):
        assert set(file.get(plugin, {})) <= known, f"{plugin} has keys that accelerate launch doesn't take"
    kind = file["distributed_type"]
    assert (given.use_deepspeed, given.use_fsdp, given.multi_gpu) == tuple(
        kind == wanted for wanted in ("DEEPSPEED", "FSDP", "MULTI_GPU")
    )
    if kind == "DEEPSPEED":
        assert path.stem == f"zero{given.zero_stage}"
        assert given.deepspeed_multinode_launcher == "standard", "others want ssh between the nodes"


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_batch_sizes_stay_open_for_the_plugin(path: Path) -> None:
    """It refuses a number of micro-batches that isn't the run's, and there can be no other that is right."""
    assert "gradient_accumulation_steps" not in path.read_text()


@pytest.mark.parametrize("path", DEEPSPEED, ids=name)
def test_deepspeed_reads_its_files(path: Path) -> None:
    runtime = pytest.importorskip("deepspeed.runtime.config")
    config = runtime.DeepSpeedConfig(str(path))
    assert path.stem == f"zero{config.zero_optimization_stage}"
    assert config.gradient_accumulation_steps == 1
    fields = type(config.zero_config).model_fields.items()
    known = {name for name, _ in fields} | {field.alias for _, field in fields}
    assert set(json.loads(path.read_text())["zero_optimization"]) <= known
