"""Every script in deploy/examples, as a user starts it: two ranks and a real server; killed, and resumed.

They train what `train-client train` trains, to the last bit: the same selections, and the same weights in the end.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shared.records import Selection
from tests.processes import descendants, send
from tests.support import ENVIRONMENT, PYTHON, Server, World, journalled_selections, write_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
STEPS, SAVE_EVERY, KILL_AT = 30, 5, 10
RATE = 5e-3
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TRAINING_ARGUMENTS = (
    "--use_cpu", "--seed", "0", "--optim", "adamw_torch", "--lr_scheduler_type", "cosine", "--warmup_steps", "0",
    "--learning_rate", str(RATE), "--per_device_train_batch_size", "2", "--save_steps", str(SAVE_EVERY),
    "--report_to", "none", "--disable_tqdm", "true",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A script, how its options are spelt, and the file that makes its checkpoints whole, if not the folder's name."""

    script: str
    options: tuple[str, ...]
    resume: tuple[str, ...]
    whole: str

    def arguments(self, config: Path, model: Path, output: Path) -> tuple[str, ...]:
        values = {"{config}": config, "{model}": model, "{output}": output}
        return tuple(str(values.get(option, option)) for option in self.options)


EXAMPLES_BY_NAME = {
    "accelerate": Example(
        "accelerate_loop.py",
        (
            "--config", "{config}", "--model", "{model}", "--output", "{output}", "--lora-rank", "4", "--cpu",
            "--learning-rate", str(RATE), "--save-every", str(SAVE_EVERY),
        ),
        ("--resume",),
        "",
    ),
    "trainer": Example(
        "hf_trainer.py",
        (
            "--config", "{config}", "--model_path", "{model}", "--output_dir", "{output}", "--lora_rank", "4",
            *TRAINING_ARGUMENTS,
        ),
        ("--resume_from_checkpoint", "latest"),
        "subbatch.json",
    ),
    "sft": Example(
        "trl_sft.py",
        (
            "--config", "{config}", "--model_path", "{model}", "--output_dir", "{output}", "--lora_rank", "4",
            *TRAINING_ARGUMENTS, "--bf16", "false", "--gradient_checkpointing", "false",
        ),
        ("--resume_from_checkpoint", "latest"),
        "subbatch.json",
    ),
}  # fmt: skip


class Job:
    """A training job under torchrun with two ranks."""

    def __init__(self, log: Path, *command: str, run: str, selector: str) -> None:
        self._log = log
        environment = ENVIRONMENT | {
            "SUBBATCH_RUN__NAME": run,
            "SUBBATCH_CLIENT__SELECTOR": selector,
            "PYTHONPATH": str(ROOT),
        }
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [PYTHON, *TORCHRUN, *command], stdout=out, stderr=out, env=environment, start_new_session=True
            )

    def finish(self) -> None:
        assert self._process.wait(timeout=240) == 0, self._log.read_text()[-4000:]

    def kill_once_there_is(self, path: Path) -> None:
        """kill -9 of the launcher and both ranks."""
        deadline = time.monotonic() + 120
        while not path.exists():
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < deadline, f"{path} never came"
            time.sleep(0.01)
        assert self._process.poll() is None, "the job was over before it could be killed"
        self.kill()

    def kill(self) -> None:
        send([self._process.pid, *descendants(self._process.pid)], signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()


@dataclass(frozen=True)
class Reference:
    """A server, the configuration of all runs, and what the reference loop made of it."""

    server: Server
    config: Path
    selections: dict[int, Selection]
    adapter: Path


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    lora = {"rank": 4, "alpha": 16.0, "dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    config = write_config(
        folder,
        world,
        selection={"large_batch_size": 12, "sub_batch_size": 7},
        run={"num_steps": STEPS},
        train={"learning_rate": RATE, "warmup_ratio": 0.0, "lora": lora},
    )
    with Server(config) as server:
        command = ("-m", "train_client", "train", "--config", str(config))
        with Job(folder / "train.log", *command, run="reference", selector=server.address) as job:
            job.finish()
        adapter = folder / "train" / "model" / "adapter_model.safetensors"
        yield Reference(server, config, journalled_selections(folder / "journal", "reference"), adapter)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES_BY_NAME)
def test_an_example_that_is_killed_and_resumed_trains_what_the_reference_loop_trains(
    world: World, tmp_path: Path, reference: Reference, name: str
) -> None:
    if name == "sft":
        pytest.importorskip("trl")
    example, log = EXAMPLES_BY_NAME[name], tmp_path / "job.log"
    arguments = example.arguments(reference.config, world.model, tmp_path)
    command, selector = (str(EXAMPLES / example.script), *arguments), reference.server.address
    checkpoint = tmp_path / f"checkpoint-{KILL_AT}"
    with Job(log, *command, run=name, selector=selector) as job:
        job.kill_once_there_is(checkpoint / example.whole)
    with Job(log, *command, *example.resume, run=name, selector=selector) as job:
        job.finish()

    selections = journalled_selections(reference.config.parent / "journal", name)
    assert sorted(selections) == sorted(reference.selections) == list(range(STEPS))
    for step, selection in selections.items():
        expected = reference.selections[step]
        assert selection.index.tolist() == expected.index.tolist(), f"step {step}"
        assert selection.gain.tolist() == expected.gain.tolist(), f"step {step}"
    weights, expected_weights = load_file(tmp_path / "adapter_model.safetensors"), load_file(reference.adapter)
    assert weights.keys() == expected_weights.keys()
    assert all(weights[key].equal(expected_weights[key]) for key in weights)
