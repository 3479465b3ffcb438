"""A plain Accelerate loop with the five lines, as a user would have it, with the faults that tests ask for.

Run by `Trainer(config, "--fault.key=value", script=...)`; writes what it was given and what it learnt to train.output.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file

from shared.config import load_config
from shared.model import trainable_tensors
from shared.wire import decode_selection, encode_selection
from train_client import SubbatchPlugin
from train_client.client import Received
from train_client.train import make_model


class FixedSource:
    """Selections from a file instead of a selector."""

    def __init__(self, path: Path) -> None:
        self._payload = path.read_bytes()

    def selection(self, step: int) -> Received:
        return Received(decode_selection(self._payload), None, len(self._payload))  # type: ignore[arg-type]

    def open(self, *_: object, **__: object) -> None: ...
    def attempted(self, completed: int) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def main() -> None:
    faults = {k.removeprefix("--fault."): v for k, _, v in (a.partition("=") for a in sys.argv) if k.startswith("--fault.")}
    fault = SimpleNamespace(**{"sleep": "0", "save_at": "-1", "resume": "", "overflow_at": "-1", "fixed": "", "sgd": "", **faults})
    rest = [a for a in sys.argv[2:] if not a.startswith("--fault.")]
    config = load_config(Path(rest[rest.index("--config") + 1]), rest[: rest.index("--config")] + rest[rest.index("--config") + 2 :])
    torch.set_num_threads(1)
    output = config.train.output
    output.mkdir(parents=True, exist_ok=True)

    accelerator = Accelerator(cpu=True)
    set_seed(config.run.seed)
    model = make_model(config, accelerator.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0) if fault.sgd else torch.optim.AdamW(trained, lr=config.train.learning_rate)
    model, optimizer = accelerator.prepare(model, optimizer)
    if int(fault.overflow_at) >= 0:
        # Accelerate allows fp16 on accelerators only; its scaler works anywhere, and is what skips steps.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer.scaler = accelerator.scaler
        optimizer._accelerate_step_called = False
        from accelerate.optimizer import patch_optimizer_step

        optimizer._optimizer_original_step_method = optimizer.optimizer.step
        optimizer._optimizer_patched_step_method = patch_optimizer_step(optimizer, optimizer.optimizer.step)

    subbatch = SubbatchPlugin(accelerator, model, config)
    if fault.fixed:
        subbatch._source = subbatch._loader._source = FixedSource(Path(fault.fixed))
    if fault.resume:
        accelerator.load_state(fault.resume)
    skipped = []
    with (output / f"loop-rank{accelerator.process_index}.jsonl").open("a") as log:
        for batch in subbatch:
            with accelerator.accumulate(model):
                loss = subbatch.loss(model, batch)
                accelerator.backward(loss)
                if batch.is_last and batch.step == int(fault.overflow_at):
                    trained[0].grad.fill_(float("inf"))
                time.sleep(float(fault.sleep) * np.random.default_rng(batch.step).random())
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
                if subbatch.cursor == int(fault.save_at):
                    accelerator.save_state(str(output / "saved"))
                    accelerator.wait_for_everyone()
                    (output / "saved-whole").touch()
    if accelerator.is_main_process:
        weights = {k: v.clone() for k, v in trainable_tensors(accelerator.unwrap_model(model)).items()}
        save_file(weights, output / "weights.safetensors")
        (output / "skipped.json").write_text(json.dumps(skipped))
    accelerator.end_training()


if __name__ == "__main__":
    main()
