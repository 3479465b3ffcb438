"""A plain Accelerate loop with the five lines, as a user would have it, with the faults that tests ask for.

Run by `Trainer(config, "--fault.key=value", script=...)`; writes what it was given and what it learnt to train.output.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import patch_optimizer_step
from accelerate.utils import set_seed
from safetensors.torch import save_file

from shared.config import Config, load_config
from shared.model import trainable_tensors
from shared.records import PhaseTimes
from shared.wire import decode_selection, encode_selection
from train_client import SubbatchPlugin
from train_client.received import Received
from train_client.train import make_model


class FixedSource:
    """Selections from a file instead of a selector."""

    reads_ahead = True

    def __init__(self, path: Path) -> None:
        self._payload = path.read_bytes()

    def selection(self, step: int) -> Received:
        return Received(decode_selection(self._payload), PhaseTimes(), len(self._payload), 0)

    def open(self, *_: object, **__: object) -> None: ...
    def instead(self, step: int) -> None: ...
    def before_step(self) -> None: ...
    def attempted(self, completed: int) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def parse() -> tuple[argparse.Namespace, Config]:
    """The faults to inject, and the product's own configuration."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--fault.sleep", dest="sleep", type=float, default=0.0)
    parser.add_argument("--fault.save_at", dest="save_at", type=int)
    parser.add_argument("--fault.resume", dest="resume")
    parser.add_argument("--fault.overflow_at", dest="overflow_at", type=int)
    parser.add_argument("--fault.fixed", dest="fixed", type=Path)
    parser.add_argument("--fault.sgd", dest="sgd", type=int, default=0)
    faults, rest = parser.parse_known_args()
    return faults, load_config(faults.config, rest)


def scale_losses(accelerator: Any, optimizer: Any) -> None:
    """Give a CPU run the loss scaler of fp16, which Accelerate allows on accelerators only; it is what skips steps."""
    accelerator.scaler = optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer._accelerate_step_called = False
    optimizer._optimizer_original_step_method = optimizer.optimizer.step
    optimizer._optimizer_patched_step_method = patch_optimizer_step(optimizer, optimizer.optimizer.step)


def main() -> None:
    fault, config = parse()
    torch.set_num_threads(1)
    output = config.train.output
    output.mkdir(parents=True, exist_ok=True)

    accelerator = Accelerator(cpu=True)
    set_seed(config.run.seed)
    model = make_model(config, accelerator.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=config.train.learning_rate)
    optimizer = torch.optim.SGD(trained, lr=1.0) if fault.sgd else adam
    model, optimizer = accelerator.prepare(model, optimizer)
    if fault.overflow_at is not None:
        scale_losses(accelerator, optimizer)

    subbatch = SubbatchPlugin(accelerator, model, config)
    if fault.fixed:
        subbatch._source = subbatch._loader._source = FixedSource(fault.fixed)
    if fault.resume:
        accelerator.load_state(fault.resume)
    skipped = []
    with (output / f"loop-rank{accelerator.process_index}.jsonl").open("a") as log:
        for batch in subbatch:
            with accelerator.accumulate(model):
                loss = subbatch.loss(model, batch)
                accelerator.backward(loss)
                if batch.is_last and batch.step == fault.overflow_at:
                    trained[0].grad.fill_(float("inf"))
                time.sleep(fault.sleep * np.random.default_rng(batch.step).random())
                optimizer.step()
                optimizer.zero_grad()
            if batch.is_last:
                if accelerator.optimizer_step_was_skipped:
                    skipped.append(batch.step)
                report = subbatch.last_step
                assert report is not None
                encoded = base64.b64encode(encode_selection(report.selection)).decode()
                log.write(json.dumps({"step": batch.step, "selection": encoded, "rows": report.rows}) + "\n")
                log.flush()
                if subbatch.cursor == fault.save_at:
                    accelerator.save_state(str(output / "saved"))
                    accelerator.wait_for_everyone()
                    (output / "saved-whole").touch()
    if accelerator.is_main_process:
        weights = {k: v.clone() for k, v in trainable_tensors(accelerator.unwrap_model(model)).items()}
        save_file(weights, output / "weights.safetensors")
        (output / "skipped.json").write_text(json.dumps(skipped))
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


if __name__ == "__main__":
    main()
