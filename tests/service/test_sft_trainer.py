"""Sub-batches in TRL's SFTTrainer, which has a loss and metrics of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer

from shared.config import load_config
from shared.errors import ConfigError, FingerprintError
from shared.model import load_base_model, trainable_tensors
from tests.support import World, write_config
from train_client import SubbatchMixin
from train_client.train import train

trl = pytest.importorskip("trl")

STEPS, RATE = 4, 5e-3


class SubbatchSFTTrainer(SubbatchMixin, trl.SFTTrainer):
    """As a user writes it."""


@pytest.fixture(autouse=True)
def _forget_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    return write_config(
        tmp_path,
        world,
        selection={"large_batch_size": 12, "sub_batch_size": 7},
        run={"num_steps": STEPS},
        client={"selector": "inline"},
        train={"lora": lora, "micro_batch_size": 3, "learning_rate": RATE, "warmup_ratio": 0.0},
    )


def a_trainer(config: Path, world: World, **changes: Any) -> SubbatchSFTTrainer:
    arguments = {
        "output_dir": str(config.parent / "trainer"),
        "learning_rate": RATE,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    model = load_base_model(load_config(config).model, torch.device("cpu"))
    torch.manual_seed(0)  # earlier releases of TRL leave the adapter's first weights to the script
    return SubbatchSFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments | changes),
        processing_class=AutoTokenizer.from_pretrained(world.model),
        peft_config=LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        ),
        subbatch=config,
    )


def test_it_reaches_the_weights_of_the_reference_loop(world: World, config: Path) -> None:
    train(load_config(config))
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = a_trainer(config, world)
    trainer.train()
    expected = load_file(config.parent / "train" / "model" / "adapter_model.safetensors")
    trained = trainable_tensors(trainer.model)
    assert trained.keys() == expected.keys()
    assert all(trained[name].equal(expected[name]) for name in expected)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == STEPS
    assert all("seconds/wait" in row for row in logged)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"packing": True}, "packing is True"), ({"padding_free": True, "max_length": None}, "padding_free is True")],
)
def test_what_would_join_rows_is_refused(world: World, config: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} instead of False, but every step trains its selection"):
        a_trainer(config, world, **changes)


def test_another_tokenizer_than_the_stores_is_refused(world: World, config: Path) -> None:
    trainer = a_trainer(config, world)
    tokenizer = trainer.processing_class
    tokenizer.add_tokens(["another"])
    with pytest.raises(FingerprintError, match="prepared with"):
        SubbatchSFTTrainer(model=trainer.model, args=trainer.args, processing_class=tokenizer, subbatch=config)
