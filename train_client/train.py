"""The reference training loop: LoRA or full fine-tuning on Accelerate, worth copying.

    accelerate launch -m train_client train --config run.toml

Run with `accelerate launch` or `torchrun` on any number of ranks. What selection adds is the plugin and its loss; the
rest is what any loop has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, set_seed
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from shared.config import Config, TrainConfig
from shared.dataset import Store
from shared.errors import ConfigError, FingerprintError
from shared.model import load_base_model, new_adapter
from shared.records import RunInfo
from shared.tokenizer import load_tokenizer, tokenizer_fingerprint
from shared.weights import content_hash, encode_weights
from train_client.checkpoint import latest_checkpoint, save_checkpoint
from train_client.gradient_check import GradientCheck
from train_client.heldout import heldout_loss
from train_client.plugin import SubbatchPlugin
from train_client.progress import Progress
from train_client.trained import TrainedTensors
from train_client.training_data import TrainingData
from train_client.whole import save_pretrained

logger = logging.getLogger(__name__)


def train(config: Config) -> None:
    """Train a run from its start, or from `train.resume`, to its end.

    Writes under `train.output`: `model/` (the adapter, or the whole model), `checkpoint-N/`, one line per step and rank
    in `steps-rank<R>.jsonl`, held-out losses in `heldout.jsonl`, gradient checks in `gradient.jsonl`, and what two runs
    must share to be compared in `run.json`.

    Raises:
        SubbatchError: anything that keeps the run from starting or going on, with the remedy.
    """
    settings = config.train
    resume = check_inputs(config)
    _make_output(settings.output)
    accelerator = make_accelerator(config)
    set_seed(config.run.seed, device_specific=True)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    heldout = open_heldout(config, tokenizer)
    model = make_model(config, accelerator.device)
    optimizer, scheduler = make_optimizer(config, model)
    accelerator.register_for_checkpointing(scheduler)
    subbatch = SubbatchPlugin(accelerator, model, config, tokenizer=tokenizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        scheduler.optimizer = optimizer  # which need not be the one that was made: an offloaded one isn't
    check = _gradient_check(accelerator, model, config, subbatch.data)
    if resume:
        accelerator.load_state(str(resume))

    first, count = subbatch.cursor, subbatch.num_steps
    is_new = accelerator.is_main_process and first == 0
    tensors = TrainedTensors(accelerator.unwrap_model(model)).now() if first == 0 else {}
    facts = run_facts(subbatch.info, tensors) if is_new else {}
    del tensors
    with Progress(accelerator, settings.output, first_step=first, num_steps=count, facts=facts) as progress:
        if heldout and first == 0 and settings.eval_every:
            with progress.memory.left_out():
                progress.heldout(0, heldout_loss(accelerator, model, heldout, subbatch.data))
        for batch in subbatch:
            if check and batch.number == 0:
                with subbatch.untimed(), progress.memory.left_out():
                    subbatch.gradient_match = check.before(subbatch.selection) or subbatch.gradient_match
            with accelerator.accumulate(model):
                loss = subbatch.loss(model, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients and settings.max_grad_norm:
                    accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if batch.is_last:
                progress.step(subbatch.last_step, subbatch.figures(), learning_rate=scheduler.get_last_lr()[0])
                scheduler.step()
                done = subbatch.cursor
                if heldout and (
                    done == subbatch.num_steps or (settings.eval_every and done % settings.eval_every == 0)
                ):
                    with progress.memory.left_out():
                        progress.heldout(done, heldout_loss(accelerator, model, heldout, subbatch.data))
                if settings.save_every and done % settings.save_every == 0:
                    save_checkpoint(accelerator, settings.output, done)
        progress.ended()
    accelerator.wait_for_everyone()
    save_pretrained(accelerator.unwrap_model(model), settings.output / "model", is_first=accelerator.is_main_process)
    if accelerator.is_main_process:
        logger.info("run %s: trained to step %d, model in %s", config.run.name, subbatch.cursor, settings.output)
    # A DDP model that is freed after its gloo process group can wait for ever for a thread that waits for it.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


def check_inputs(config: Config) -> Path | None:
    """Look at everything that costs little before the model is loaded; gives the checkpoint to resume from, if any.

    Raises:
        SubbatchError: a path that isn't set, or where nothing usable is.
    """
    if not config.model.path:
        raise ConfigError("model.path is not set: give a hub id, a folder or a .gguf file")
    sends_rows = config.client.payload == "records"
    for path in (None if sends_rows else config.data.store, config.data.heldout_store):
        if path:
            Store.open(path)
    if sends_rows and config.train.gradient_check_every:
        raise ConfigError(
            f"train.gradient_check_every is {config.train.gradient_check_every}, which reads large batches from "
            'data.store, and client.payload is "records": set it to 0, or client.payload to "indices"'
        )
    where = config.train.output.absolute()
    while not where.exists():
        where = where.parent
    if not where.is_dir() or not os.access(where, os.W_OK | os.X_OK):
        raise ConfigError(f"train.output {config.train.output} can't be written: no folder can be made in {where}")
    resume = config.train.resume
    if str(resume) == "latest":
        return latest_checkpoint(config.train.output)
    if resume and not (resume / "custom_checkpoint_0.pkl").is_file():
        raise ConfigError(f"train.resume {resume} is not a checkpoint folder: give one, or `latest`")
    return resume


def _make_output(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output {folder} can't be written: {error.strerror}") from None


def open_heldout(config: Config, tokenizer: Any) -> Store | None:
    """The held-out rows, where there are any; they are on this machine, whatever `client.payload` says.

    Raises:
        FingerprintError: they were prepared with another tokenizer than the model's.
    """
    if config.data.heldout_store is None:
        return None
    heldout = Store.open(config.data.heldout_store)
    if heldout.manifest.tokenizer.fingerprint != (fingerprint := tokenizer_fingerprint(tokenizer)):
        raise FingerprintError(
            f"data.heldout_store {heldout.path} was prepared with tokenizer {heldout.manifest.tokenizer.fingerprint}, "
            f"that of model.path {config.model.path} is {fingerprint}: prepare it with the model's tokenizer"
        )
    return heldout


def _gradient_check(accelerator: Any, model: Any, config: Config, data: TrainingData) -> GradientCheck | None:
    every = config.train.gradient_check_every
    if not every:
        return None
    assert data.store
    return GradientCheck(
        accelerator,
        model,
        data.store,
        config.selection,
        seed=config.run.seed,
        every=every,
        output=config.train.output,
    )


def make_accelerator(config: Config) -> Any:
    """An Accelerator for one rank, its scheduler stepped by the loop, its trackers under `train.output`."""
    settings = config.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        PartialState(cpu=True)  # Accelerator(cpu=True) would leave out DeepSpeed
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            log_with=list(settings.trackers) or None,
            project_dir=str(settings.output),
            step_scheduler_with_optimizer=False,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"Accelerate refuses the [train] settings: {error}") from None
    kind = accelerator.distributed_type
    if settings.gradient_check_every and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise ConfigError(
            f"train.gradient_check_every is {settings.gradient_check_every}, under {kind.value} gradients can't be "
            "checked: set it to 0"
        )
    if kind == DistributedType.DEEPSPEED:  # which clips by its own configuration only
        accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = settings.max_grad_norm or 0.0
    if settings.trackers:
        accelerator.init_trackers("subbatch", config=_flat(settings))
    return accelerator


def make_model(config: Config, device: torch.device) -> Any:
    """The base model, ready to train: with a new LoRA adapter, or all of its weights."""
    model = load_base_model(config.model, device)
    model.config.use_cache = False
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = config.train.lora
    if not lora:
        if config.model.load_in != "full":
            raise ConfigError(
                f"model.load_in {config.model.load_in!r} holds weights that can't be trained, train.lora is false: "
                "train an adapter, or set load_in to 'full'"
            )
        return model.train().requires_grad_()
    return new_adapter(model, lora).train()


def make_optimizer(config: Config, model: Any) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over what is trained, and its schedule, which the loop steps once per attempted step.

    So the rate at step t doesn't depend on the number of ranks.
    """
    settings, num_steps = config.train, config.run.num_steps
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    warmup = round(settings.warmup_ratio * num_steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)


def run_facts(info: RunInfo, trained: Mapping[str, Tensor]) -> dict[str, Any]:
    """What two runs must share to be compared step by step: the weights they start from, data, tokenizer and model."""
    encoded = encode_weights(trained)
    return {
        "initial_weights": content_hash(encoded),
        "weights_bytes": len(encoded),
        "fingerprints": asdict(info.fingerprints),
    }


def _flat(settings: TrainConfig) -> dict[str, str]:
    return {key: str(value) for key, value in settings.model_dump().items()}
