"""A rank of a Hugging Face Trainer, or TRL's SFTTrainer, under DeepSpeed or FSDP2, as a user's script starts it.

Writes what was trained to `--output`/weights.safetensors, gathered by the framework's own means.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from loop import FixedSource
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from shared.config import load_config
from train_client import SubbatchMixin
from train_client.train import make_model
from train_client.whole import whole

_BUCKETS = {"reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}


def deepspeed_config(kind: str) -> dict[str, Any]:
    """What a user writes for the Trainer: everything that TrainingArguments knows is "auto"."""
    stage, _, option = kind.removeprefix("zero").partition("-")
    zero: dict[str, Any] = {"stage": int(stage), "overlap_comm": False}
    if stage == "3":
        zero |= _BUCKETS | {"stage3_param_persistence_threshold": 0}
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
    }
    if option == "theirs":
        parameters = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}
        config["optimizer"] = {"type": "AdamW", "params": parameters}
        schedule = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
        config["scheduler"] = {"type": "WarmupDecayLR", "params": schedule | {"total_num_steps": "auto"}}
    return config


def distributed(kind: str) -> dict[str, Any]:
    """The arguments that shard the model."""
    if kind in ("ddp", "launched"):  # the launcher's environment decides
        return {}
    if kind == "fsdp2":
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2}}
    return {"deepspeed": deepspeed_config(kind)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clip", type=float, default=0.0)
    parser.add_argument("--fixed", type=Path, help="train this selection, with SGD at rate 1")
    parser.add_argument("--sft", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--resume", help="a checkpoint folder, or `latest`")
    parser.add_argument("--save-steps", type=int, default=0)
    known, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    config = load_config(known.config, overrides)
    arguments: dict[str, Any] = {
        "output_dir": str(known.output),
        "learning_rate": 1.0 if known.fixed else config.train.learning_rate,
        "optim": "sgd" if known.fixed else "adamw_torch",
        "lr_scheduler_type": "constant" if known.fixed else "cosine",
        "max_grad_norm": known.clip,
        "per_device_train_batch_size": config.train.micro_batch_size,
        "use_cpu": True,
        "seed": config.run.seed,
        "bf16": known.bf16,
        "save_strategy": "steps" if known.save_steps else "no",
        "save_steps": known.save_steps or 500,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        **distributed(known.kind),
    }
    kind_of_trainer: Any = Trainer
    kind_of_arguments: Any = TrainingArguments
    if known.sft:
        from trl import SFTConfig, SFTTrainer

        kind_of_trainer, kind_of_arguments = SFTTrainer, SFTConfig
        arguments |= {"gradient_checkpointing": False}
    args = kind_of_arguments(**arguments)
    if known.kind.startswith("zero3"):
        import deepspeed

        deepspeed.init_distributed()  # on a CPU Accelerate leaves it out, but from_pretrained makes shards already
    if known.kind == "fsdp2":  # Accelerate shards so on GPUs alone, PyTorch anywhere
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    torch.manual_seed(config.run.seed)
    extra: dict[str, Any] = {}
    if known.sft:
        from transformers import AutoTokenizer

        extra["processing_class"] = AutoTokenizer.from_pretrained(config.model.path)

    class SubbatchTrainer(SubbatchMixin, kind_of_trainer):  # type: ignore[misc]
        pass

    trainer = SubbatchTrainer(model=make_model(config, torch.device("cpu")), args=args, subbatch=config, **extra)
    kinds = {"ddp": DistributedType.MULTI_CPU, "fsdp2": DistributedType.FSDP}
    assert trainer.accelerator.distributed_type == kinds.get(known.kind, DistributedType.DEEPSPEED)
    subbatch = trainer.subbatch
    if known.fixed:
        subbatch._source = subbatch._loader._source = FixedSource(known.fixed)
    trainer.train(resume_from_checkpoint=known.resume == "latest" or known.resume)
    names = {name: p for name, p in subbatch._model.named_parameters() if p.requires_grad}
    with whole(list(names.values())) as tensors:
        if trainer.is_world_process_zero():
            weights = {name: t.float().clone().contiguous() for name, t in zip(names, tensors, strict=True)}
            save_file(weights, known.output / "weights.safetensors")
            (known.output / "log.json").write_text(json.dumps(trainer.state.log_history))
    trainer.accelerator.wait_for_everyone()
    os._exit(0)


if __name__ == "__main__":
    main()
