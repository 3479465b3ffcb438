"""Trainers whose models are in shards learn what one process would learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selector_server.journal import Journal
from selector_server.run import Run
from shared.records import Selection
from shared.weights import encode_weights
from shared.wire import encode_selection
from tests.e2e.test_gradient import LARGE, SUB, reference, selection  # noqa: F401
from tests.e2e.test_selections import assert_same_weights
from tests.e2e.test_sharded import error_of_update
from tests.forked import ForkedRanks
from tests.support import ENVIRONMENT, Server, World, journalled_selections, write_config
from train_client.trainer_state import STATE_FILE

SCRIPT = Path(__file__).parent / "sharded_trainer.py"


@pytest.fixture(autouse=True)
def _deepspeed(kind: str) -> None:
    if kind not in ("ddp", "fsdp2") and not find_spec("deepspeed"):
        pytest.skip("the extra `deepspeed` is not installed")


def job(config: Path, kind: str, *asked: object, ranks: int = 2, **environment: str) -> ForkedRanks:
    arguments = ("--config", config, "--kind", kind, *asked)
    return ForkedRanks(
        SCRIPT, arguments, ranks=ranks, environment=ENVIRONMENT | environment, log=config.parent / "train.log"
    )


@pytest.mark.parametrize(
    ("kind", "ranks", "micro_batch_size", "clip"),
    [
        ("zero3", 2, 3, 0.0),
        ("fsdp2", 2, 3, 0.0),
        pytest.param("ddp", 2, 3, 0.0, marks=pytest.mark.long),
        pytest.param("zero1", 2, 3, 0.0, marks=pytest.mark.long),
        pytest.param("zero2", 3, 2, 0.5, marks=pytest.mark.long),
        pytest.param("zero3", 3, 5, 0.5, marks=pytest.mark.long),
        pytest.param("fsdp2", 3, 2, 0.5, marks=pytest.mark.long),
        pytest.param("launched", 2, 3, 0.0, marks=pytest.mark.long),
    ],
)
def test_a_trainers_update_equals_a_float64_reference(
    world: World,
    selection: Selection,  # noqa: F811
    reference: dict[str, torch.Tensor],  # noqa: F811
    tmp_path: Path,
    kind: str,
    ranks: int,
    micro_batch_size: int,
    clip: float,
) -> None:
    payload, output = tmp_path / "selection.arrow", tmp_path / "train"
    payload.write_bytes(encode_selection(selection))
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": 1},
        selection={"large_batch_size": LARGE, "sub_batch_size": SUB},
        train={"lora": False, "micro_batch_size": micro_batch_size},
    )
    environment = {}
    if kind == "launched":
        environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    asked = ("--clip", clip, "--output", output, "--fixed", payload)
    with job(config, kind, *asked, ranks=ranks, **environment) as trainer:
        trainer.finish()
    assert error_of_update(world, output, reference, clip=clip) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("zero1-theirs", ()),
        ("zero2", ()),
        ("zero3", ()),
        ("zero3", ("--bf16",)),
        ("zero2", ("--sft",)),
        ("zero3", ("--sft",)),
        ("fsdp2", ()),
        ("fsdp2", ("--sft",)),
    ],
)
def test_a_rank_is_killed_and_the_resumed_trainer_goes_on_as_if_nothing_had_happened(
    world: World, tmp_path: Path, kind: str, asked: tuple[str, ...]
) -> None:
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": 12},
        server={"retain_weights": 13},
        selection={"sub_batch_size": 5},
        client={"away_after_s": 5.0},
    )
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with Server(config) as server:
        common = (*asked, "--save-steps", 3, f"--client.selector={server.address}")
        with job(config, kind, *common, "--output", killed, "--run.name=killed") as trainer:
            trainer.until(lambda: (killed / "checkpoint-6" / STATE_FILE).exists())
            trainer.ranks[1].kill()
        assert not (killed / "weights.safetensors").exists()
        with job(config, kind, *common, "--output", killed, "--resume", "latest", "--run.name=killed") as trainer:
            trainer.finish()
        with job(config, kind, *common, "--output", undisturbed, "--run.name=undisturbed") as trainer:
            trainer.finish()
        selections = [journalled_selections(tmp_path / "journal", name) for name in ("killed", "undisturbed")]
    assert [s.index.tolist() for s in selections[0].values()] == [s.index.tolist() for s in selections[1].values()]
    assert_same_weights(killed, undisturbed)
    pushed = Run(Journal(tmp_path / "journal" / "undisturbed", retain_weights=13)).weights(6)
    assert pushed == encode_weights(load_file(undisturbed / "checkpoint-6" / "adapter_model.safetensors"))
