"""`--dry-run` on both commands: the configuration as it was read, what it will take, and nothing done."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch

from shared.config import load_config
from shared.model import load_base_model, new_adapter
from shared.sizes import sizes
from shared.weights import encode_weights
from tests.support import World, run_cli, write_config
from train_client.trained import TrainedTensors

COMMANDS = [("selector_server", "serve"), ("train_client", "train")]


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    return write_config(tmp_path, world, selection={"preset": "matched", "sub_batch_size": 5}, run={"num_steps": 9})


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_is_the_same_configuration_and_nothing_is_written(
    command: tuple[str, str], config: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    overrides = ["--run.staleness", "3", "--no-server.send_rows"]
    done = run_cli(command[0], command[1], "--dry-run", "--config", config, *overrides)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    printed = tmp_path / "printed.toml"
    printed.write_text(done.stdout)
    assert load_config(printed) == load_config(config, overrides)
    assert "staleness = 3  # command line" in done.stdout
    assert f"num_steps = 9  # {config}" in done.stdout
    assert "pick = \"matching_pursuit\"  # preset 'matched'" in done.stdout
    assert re.search(r"^# bytes per push: \d", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("full", [False, True])
def test_sizes_told_without_weights_are_those_of_the_model_that_is_trained(full: bool, config: Path) -> None:
    settings = load_config(config, ["--train.lora", "false"] if full else [])
    model = load_base_model(settings.model, torch.device("cpu"))
    parameters = sum(p.numel() for p in model.parameters())
    trained = model.requires_grad_() if full else new_adapter(model, settings.train.lora)  # type: ignore[arg-type]
    pushed = len(encode_weights(TrainedTensors(trained).now()))
    told = sizes(settings)
    assert told
    assert told.parameters == parameters
    header = pushed - told.push_bytes
    assert 0 < header < 200 * len(list(trained.parameters()))


def test_a_base_in_four_bits_takes_an_eighth_of_float32_where_its_linear_modules_are(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.sizes.quantisation", lambda _config: None)  # bitsandbytes isn't everywhere
    whole, fewer = (sizes(load_config(config, ["--model.load_in", bits])) for bits in ("full", "4bit"))
    assert whole
    assert fewer
    model = load_base_model(load_config(config).model, torch.device("cpu"))
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith(("model.embed", "lm_head"))
    ]
    assert whole.model_bytes - fewer.model_bytes == sum(p.numel() for p in matrices) * 7 // 2


def test_a_taken_port_and_a_missing_store_are_told_with_exit_code_2(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_cli("selector_server", "serve", "--dry-run", "--config", config, "--server.port", port)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} of server.port is taken" in done.stderr
    for module, command in COMMANDS:
        done = run_cli(module, command, "--dry-run", "--config", config, "--data.store", "nowhere")
        assert done.returncode == 2
        assert "store nowhere does not exist" in done.stderr
