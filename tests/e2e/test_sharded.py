"""Models and optimizers in shards, by DeepSpeed or FSDP2, learn what one process would learn."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from selector_server.journal import Journal
from selector_server.run import Run
from shared.records import Selection
from shared.weights import encode_weights
from shared.wire import encode_selection
from tests.e2e.test_gradient import LARGE, SUB, reference, selection  # noqa: F401
from tests.e2e.test_selections import assert_same_weights
from tests.forked import ForkedRanks
from tests.support import ENVIRONMENT, Server, Trainer, World, write_config

LOOP = Path(__file__).parent / "sharded_loop.py"


@pytest.fixture(autouse=True)
def _deepspeed(kind: str) -> None:
    if kind != "fsdp2" and not find_spec("deepspeed"):
        pytest.skip("the extra `deepspeed` is not installed")


@pytest.mark.parametrize(
    ("kind", "ranks", "micro_batch_size", "clip"),
    [
        ("zero1", 2, 3, 0.0),
        ("zero2", 2, 3, 0.0),
        ("zero3", 2, 3, 0.0),
        ("fsdp2", 2, 3, 0.0),
        pytest.param("zero1-bf16", 2, 3, 0.0, marks=pytest.mark.long),
        pytest.param("zero2-bf16", 2, 3, 0.5, marks=pytest.mark.long),
        pytest.param("zero3-bf16", 2, 3, 0.0, marks=pytest.mark.long),
        pytest.param("native-zero3-bf16", 2, 3, 0.0, marks=pytest.mark.long),
        pytest.param("fsdp2-bf16", 2, 3, 0.0, marks=pytest.mark.long),
        pytest.param("zero2", 3, 2, 0.0, marks=pytest.mark.long),
        pytest.param("zero2-offload", 2, 3, 0.5, marks=pytest.mark.long),
        pytest.param("zero3-offload", 2, 5, 0.5, marks=pytest.mark.long),
        pytest.param("native-zero2-offload", 2, 3, 0.5, marks=pytest.mark.long),
        pytest.param("native-zero3", 3, 2, 0.0, marks=pytest.mark.long),
        pytest.param("fsdp2", 3, 2, 0.5, marks=pytest.mark.long),
    ],
)
def test_the_update_equals_a_float64_reference(
    world: World,
    selection: Selection,  # noqa: F811
    reference: dict[str, torch.Tensor],  # noqa: F811
    tmp_path: Path,
    kind: str,
    ranks: int,
    micro_batch_size: int,
    clip: float,
) -> None:
    payload = tmp_path / "selection.arrow"
    payload.write_bytes(encode_selection(selection))
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": 1},
        selection={"large_batch_size": LARGE, "sub_batch_size": SUB},
        train={"lora": False, "micro_batch_size": micro_batch_size},
    )
    asked = (f"--sharding.kind={kind}", f"--sharding.clip={clip}", "--fault.sgd=1", f"--fault.fixed={payload}")
    with job(config, *asked, ranks=ranks) as trainer:
        trainer.finish()
    # DeepSpeed's own float32 weights begin as the bfloat16 that the model was cast to.
    first = torch.bfloat16 if kind.endswith("bf16") and kind != "fsdp2-bf16" else torch.float32
    error = error_of_update(world, tmp_path / "train", reference, clip=clip, first=first)
    assert error < (0.02 if kind.endswith("bf16") else 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp2"])
def test_a_partly_frozen_model_without_an_adapter_is_saved_whole(
    world: World,
    selection: Selection,  # noqa: F811
    reference: dict[str, torch.Tensor],  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    payload = tmp_path / "selection.arrow"
    payload.write_bytes(encode_selection(selection))
    rows = {"large_batch_size": LARGE, "sub_batch_size": SUB}
    config = write_config(tmp_path, world, run={"num_steps": 1}, selection=rows, train={"lora": False})
    asked = (f"--sharding.kind={kind}", "--sharding.clip=0.0", "--sharding.frozen=1", "--fault.sgd=1")
    with job(config, *asked, f"--fault.fixed={payload}", ranks=2) as trainer:
        trainer.finish()
    trained = {name: gradient for name, gradient in reference.items() if "layers.1." in name}
    assert error_of_update(world, tmp_path / "train", trained, clip=0.0) < 1e-5
    base, saved = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
        for path in (world.model, tmp_path / "train" / "model")
    )
    after = load_file(tmp_path / "train" / "weights.safetensors")
    assert saved.keys() == base.keys()
    assert all(saved[name].equal(after.get(name, base[name])) for name in base)


def job(config: Path, *asked: str, ranks: int) -> ForkedRanks:
    arguments = ("train", "--config", config, *asked)
    return ForkedRanks(LOOP, arguments, ranks=ranks, environment=ENVIRONMENT, log=config.parent / "train.log")


def error_of_update(
    world: World,
    output: Path,
    reference: dict[str, torch.Tensor],  # noqa: F811
    *,
    clip: float,
    first: torch.dtype = torch.float32,
) -> float:
    """The update's distance from Σ w_i ∇L_i / b, clipped to a norm unless that is 0, relative to its size."""
    before = dict(AutoModelForCausalLM.from_pretrained(world.model, dtype=first).named_parameters())
    after = load_file(output / "weights.safetensors")
    assert after.keys() == reference.keys()
    update = torch.cat([(before[name] - after[name]).double().flatten() for name in reference])
    expected = torch.cat([gradient.flatten() for gradient in reference.values()])
    if clip:
        assert expected.norm() > clip
        expected *= clip / expected.norm()
    return ((update - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    "kind",
    [
        "zero3",
        *(pytest.param(k, marks=pytest.mark.long) for k in ("zero2", "zero3-kept", "native-zero3", "fsdp2")),
        *(pytest.param(k, marks=pytest.mark.long) for k in ("zero1-bf16", "zero3-bf16", "fsdp2-bf16", "zero2-fp16")),
    ],
)
def test_a_job_in_shards_pushes_what_peft_saves_and_resumes_as_if_it_had_gone_on(
    world: World, tmp_path: Path, kind: str
) -> None:
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": 6},
        server={"retain_weights": 9},
        selection={"sub_batch_size": 5},
        train={"lora": {"rank": 4, "dropout": 0.05}},
    )
    asked = (f"--sharding.kind={kind}", "--sharding.clip=1.0")
    with Server(config) as server:
        here = f"--client.selector={server.address}"
        with job(config, *asked, here, "--fault.save_at=3", ranks=2) as trainer:
            trainer.finish()
        journal = shutil.copytree(tmp_path / "journal" / "run", tmp_path / "copy")
        again, saved = tmp_path / "again", tmp_path / "train" / "saved"
        with job(config, *asked, here, f"--fault.resume={saved}", f"--train.output={again}", ranks=2) as trainer:
            trainer.finish()

    if not kind.startswith("native"):
        pushed = Run(Journal(journal, retain_weights=9)).weights(3)
        assert pushed == encode_weights(load_file(tmp_path / "train" / "peft" / "adapter_model.safetensors"))
    assert_same_weights(again, tmp_path / "train")
    for rank in (0, 1):
        logs = [(output / f"loop-rank{rank}.jsonl").read_text().splitlines() for output in (tmp_path / "train", again)]
        assert logs[0][3:] == logs[1]
        assert len(logs[1]) == 3


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zero3"])
def test_the_reference_loop_learns_with_zero_3_what_it_learns_under_ddp(
    world: World, tmp_path: Path, kind: str
) -> None:
    zero3 = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    }
    found = {}
    for name, environment in {"ddp": {}, "zero3": zero3}.items():
        config = write_config(
            tmp_path / name,
            world,
            run={"num_steps": 5},
            data={"heldout_store": world.heldout},
            selection={"pick": "random", "sub_batch_size": 5},  # or a rounding error would select other rows
            train={"eval_every": 2, "save_every": 3, "lora": {"rank": 4, "dropout": 0.0}},
        )
        output = tmp_path / name / "train"
        with Server(config) as server:
            here = f"--client.selector={server.address}"
            with Trainer(config, here, ranks=2, **environment) as trainer:
                trainer.finish()
            whole = load_file(output / "model" / "adapter_model.safetensors")
            with Trainer(config, here, "--train.resume=latest", ranks=2, **environment) as trainer:
                trainer.finish()
        resumed = load_file(output / "model" / "adapter_model.safetensors")
        assert all(resumed[name].equal(whole[name]) for name in whole)
        losses = [json.loads(line)["balanced"] for line in (output / "heldout.jsonl").read_text().splitlines()]
        found[name] = whole, losses
    assert found["ddp"][0].keys() == found["zero3"][0].keys()
    for name, tensor in found["ddp"][0].items():
        torch.testing.assert_close(tensor, found["zero3"][0][name], rtol=1e-3, atol=1e-5)
    assert len(found["ddp"][1]) >= 4
    assert found["zero3"][1] == pytest.approx(found["ddp"][1], rel=1e-5)
