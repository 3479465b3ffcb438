r"""LoRA on a DeepSpeed engine without Accelerate, on sub-batches from a selector server.

    deepspeed --num_gpus 2 deploy/examples/native_deepspeed.py --config run.toml --model microsoft/phi-2 \
        --output out/phi2

It saves every `--save-every` steps, and with `--resume` goes on from the newest checkpoint, if there is any. On another
number of ranks that needs the checkpoint made universal, and `--universal`:

    python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state \
        --input_folder out/phi2/checkpoint-500 --output_folder out/phi2/checkpoint-500-universal

Under `torchrun` it runs, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import deepspeed
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup, set_seed

from shared.config import load_config
from train_client import SubbatchPlugin
from train_client.whole import save_pretrained


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, help="the run's TOML file, which the selector reads, too")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--zero-stage", type=int, default=3)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--universal", action="store_true", help="resume from what ds_to_universal made")
    parser.add_argument("--local_rank", type=int, help="the deepspeed launcher's")
    return parser.parse_args()


def main() -> None:
    """Train the run to its end."""
    args = arguments()
    config = load_config(args.config)
    deepspeed.init_distributed()
    set_seed(0)
    lora = LoraConfig(r=args.lora_rank, lora_alpha=4 * args.lora_rank, target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.model), lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=get_cosine_schedule_with_warmup(optimizer, 0, config.run.num_steps),
        config={
            "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
            "gradient_clipping": args.max_grad_norm,
            "zero_optimization": {"stage": args.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "checkpoint": {"load_universal": args.universal},
        },
    )
    subbatch = SubbatchPlugin.for_engine(engine, config)
    if args.resume and (args.output / ("latest_universal" if args.universal else "latest")).exists():
        _, client_state = engine.load_checkpoint(str(args.output))
        subbatch.load_state_dict(client_state["subbatch"])

    for batch in subbatch:
        engine.backward(subbatch.loss(engine, batch))
        engine.step()
        if batch.is_last:
            figures = subbatch.figures()
            if engine.global_rank == 0:
                print(f"step {batch.step}: loss {figures['loss']:.4f}", flush=True)
            if subbatch.cursor % args.save_every == 0:
                client_state = {"subbatch": subbatch.state_dict()}
                engine.save_checkpoint(str(args.output), f"checkpoint-{subbatch.cursor}", client_state=client_state)

    save_pretrained(engine.module, args.output, is_first=engine.global_rank == 0)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
