"""A model in shards is written whole: what is trained of one with an adapter, everything of one without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.small_models import tiny_model
from train_client.whole import is_sharded, save_pretrained


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def in_shards(model: torch.nn.Module) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert is_sharded(model.parameters())


def test_a_model_of_which_a_layer_is_trained_is_written_with_its_frozen_layers(tmp_path: Path) -> None:
    model = tiny_model("phi")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_shards(model)
    save_pretrained(model, tmp_path, is_first=True)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(written[name].equal(expected[name]) for name in expected)


def test_an_adapter_is_written_as_from_a_whole_model_and_the_ranks_that_do_not_write_take_part(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("phi"), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert isinstance(model, PeftModel)
    save_pretrained(model, tmp_path / "whole", is_first=True)
    in_shards(model)
    save_pretrained(model, tmp_path / "nothing", is_first=False)
    save_pretrained(model, tmp_path / "shards", is_first=True)
    assert not (tmp_path / "nothing").exists()
    written, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("shards", "whole"))
    assert written.keys() == expected.keys()
    assert all(written[name].equal(expected[name]) for name in expected)
