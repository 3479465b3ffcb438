"""The scripts of deploy/examples: how each is launched, what its options are called, and when a checkpoint is whole."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.processes import descendants, send
from tests.support import ENVIRONMENT, PYTHON

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
SAVE_EVERY, RATE = 5, 5e-3
# So that every framework does the same arithmetic: gradients are clipped by none, and a step is one micro-batch.
NO_CLIPPING, ROWS_AT_ONCE = 1e9, 4
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes=2", "--mixed_precision=no", "--config_file")
SHARED = ("--model", "{model}", "--output", "{output}", "--lora-rank", "4", "--learning-rate", str(RATE))
SAVING = ("--save-every", str(SAVE_EVERY))
TRAINING_ARGUMENTS = (
    "--model_path", "{model}", "--output_dir", "{output}", "--lora_rank", "4",
    "--use_cpu", "--seed", "0", "--optim", "adamw_torch", "--lr_scheduler_type", "cosine", "--warmup_steps", "0",
    "--learning_rate", str(RATE), "--max_grad_norm", str(NO_CLIPPING), "--save_steps", str(SAVE_EVERY),
    "--per_device_train_batch_size", str(ROWS_AT_ONCE), "--report_to", "none", "--disable_tqdm", "true",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A script; `checkpoint` is there once one is whole. Is its arithmetic the reference loop's, to the last bit?"""

    script: str
    options: tuple[str, ...]
    resume: tuple[str, ...] = ("--resume",)
    checkpoint: str = "checkpoint-10"
    launcher: tuple[str, ...] = TORCHRUN
    needs: str = "torch"
    is_exact: bool = True

    def command(self, model: Path, output: Path, *, resume: bool = False) -> list[str]:
        """What to give to Python."""
        values = {"{model}": str(model), "{output}": str(output)}
        options = [values.get(option, option) for option in self.options]
        return [*self.launcher, str(EXAMPLES / self.script), *options, *(self.resume if resume else ())]


_CLIP = ("--max-grad-norm", str(NO_CLIPPING))
_LATEST = ("--resume_from_checkpoint", "latest")
EXAMPLES_BY_NAME = {
    "accelerate": Example("accelerate_loop.py", (*SHARED, *SAVING, *_CLIP, "--cpu")),
    "accelerate-zero3": Example(
        "accelerate_deepspeed.py",
        (*SHARED, *SAVING, "--cpu"),
        is_exact=False,
        launcher=(*ACCELERATE, str(ROOT / "deploy/accelerate/zero3.yaml"), f"--gradient_clipping={NO_CLIPPING}"),
        needs="deepspeed",
    ),
    "accelerate-fsdp2": Example(
        "accelerate_fsdp2.py",
        (*SHARED, *SAVING, *_CLIP),
        is_exact=False,
        launcher=(*ACCELERATE, str(ROOT / "deploy/accelerate/fsdp2.yaml"), str(ROOT / "tests/e2e/fsdp2_on_cpu.py")),
    ),
    "deepspeed-zero1": Example(
        "native_deepspeed.py",
        (*SHARED, *SAVING, *_CLIP, "--zero-stage", "1"),
        checkpoint="latest",
        needs="deepspeed",
    ),
    "deepspeed-zero3": Example(
        "native_deepspeed.py",
        (*SHARED, *SAVING, *_CLIP, "--zero-stage", "3"),
        checkpoint="latest",
        needs="deepspeed",
        is_exact=False,
    ),
    "trainer": Example("hf_trainer.py", TRAINING_ARGUMENTS, _LATEST, "checkpoint-10/subbatch.json"),
    "sft": Example(
        "trl_sft.py",
        (*TRAINING_ARGUMENTS, "--bf16", "false", "--gradient_checkpointing", "false"),
        _LATEST,
        "checkpoint-10/subbatch.json",
        needs="trl",
    ),
}


class Job:
    """A training job of two ranks, configured by its environment alone."""

    def __init__(self, log: Path, command: list[str], *, folder: Path | None = None, **settings: object) -> None:
        self._log = log
        environment = {"PYTHONPATH": str(ROOT)} | {f"SUBBATCH_{name}": str(value) for name, value in settings.items()}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [PYTHON, *command],
                cwd=folder,
                stdout=out,
                stderr=out,
                env=_without_ours(ENVIRONMENT) | environment,
                start_new_session=True,
            )

    def finish(self) -> None:
        assert self._process.wait(timeout=280) == 0, self._log.read_text()[-8000:]

    def kill_once_there_is(self, path: Path) -> None:
        """kill -9 of the launcher and both ranks."""
        deadline = time.monotonic() + 280
        while not path.exists():
            assert self._process.poll() is None, self._log.read_text()[-8000:]
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


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("SUBBATCH_")}
