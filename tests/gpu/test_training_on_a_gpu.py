"""Whole training jobs with a selector, both on a GPU, in the precisions and engines that people use there."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selector_server.journal import Journal
from selector_server.run import Run
from shared.weights import decode_weights
from tests.support import PYTHON, Server, World, write_config

pytestmark = pytest.mark.gpu
STEPS = 8
EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
VISIBLE = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no")
TRAINING_ARGUMENTS = (
    "--learning_rate", "1e-3", "--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no",
    "--disable_tqdm", "true",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _device() -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA device; without one leave them out with -m 'not gpu'"


def command(kind: str, config: Path, world: World, output: Path) -> tuple[str, ...]:
    """How a job of this kind is started."""
    own = ("--config", str(config), "--output", str(output))
    if kind in ("loop-bf16", "4bit", "8bit"):
        overrides = ("--train.output", str(output), "--train.mixed_precision", "bf16")
        return "-m", "train_client", "train", "--config", str(config), *overrides
    if kind.startswith("zero"):
        zero = ("--use_deepspeed", "--zero_stage", kind[4], "--mixed_precision", "bf16")
        return *LAUNCH, *zero, str(EXAMPLES / "accelerate_deepspeed.py"), *own
    hf = ("--config", str(config), "--model_path", str(world.model), "--output_dir", str(output), "--lora_rank", "4")
    return str(EXAMPLES / "hf_trainer.py"), *hf, "--bf16", *TRAINING_ARGUMENTS


@pytest.mark.parametrize("kind", ["loop-bf16", "zero2", "zero3", "trainer-bf16", "4bit", "8bit"])
@pytest.mark.parametrize("server_dtype", ["float32", "bfloat16"])
def test_a_job_on_a_gpu_trains_on_selections_that_its_own_weights_scored(
    world: World, tmp_path: Path, kind: str, server_dtype: str
) -> None:
    extra = "deepspeed" if kind.startswith("zero") else "bitsandbytes" if kind.endswith("bit") else None
    if extra and not find_spec(extra):
        pytest.skip(f"the extra `{extra}` is not installed")
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": STEPS},
        model={"dtype": server_dtype, "load_in": kind if kind.endswith("bit") else "full"},
        server={"device": "cuda", "retain_weights": 99},
        train={"device": "auto"},
    )
    output = tmp_path / "output"
    with Server(config, **VISIBLE) as server:
        environment = {**os.environ, **VISIBLE, "SUBBATCH_CLIENT__SELECTOR": server.address, "HF_HUB_OFFLINE": "1"}
        environment.pop("DS_ACCELERATOR", None)  # which tests on processors set
        job = subprocess.run(
            [PYTHON, *command(kind, config, world, output)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-6000:]
        assert server.stop() == 0
    run = Run(Journal(tmp_path / "journal" / "run", retain_weights=99))
    assert run.closed
    assert [run.selection(step).weights_version for step in range(STEPS)] == [max(0, step - 1) for step in range(STEPS)]
    (saved,) = output.rglob("adapter_model.safetensors")
    trained = load_file(saved)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    newest = run.weights(STEPS - 2)  # behind the last selection
    assert newest is not None
    pushed = decode_weights(newest, run.info.trainable)
    assert pushed.keys() == trained.keys()
    moved = [name for name in trained if not torch.equal(trained[name], pushed[name].to(trained[name].dtype))]
    assert moved  # two more steps
    for name, tensor in trained.items():
        assert (tensor.float() - pushed[name].float()).abs().max() < 0.1
