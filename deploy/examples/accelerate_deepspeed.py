r"""LoRA with DeepSpeed's ZeRO-3 through Accelerate, on sub-batches from a selector server.

    accelerate launch --config_file deploy/accelerate/zero3.yaml deploy/examples/accelerate_deepspeed.py \
        --config run.toml --model microsoft/phi-2 --output out/phi2

The plugin comes before `accelerator.prepare`, which learns from it how large and how many a step's micro-batches are.
The launcher's file says how DeepSpeed shards and clips; ZeRO-1 and 2 need nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from train_client import SubbatchPlugin
from train_client.checkpoint import latest_checkpoint, save_checkpoint
from train_client.whole import save_pretrained


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, help="the run's TOML file, which the selector reads, too")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Train the run to its end."""
    args = arguments()
    PartialState(cpu=args.cpu)  # told that there is no GPU, Accelerator itself would leave out DeepSpeed
    accelerator = Accelerator()
    set_seed(0)
    lora = LoraConfig(r=args.lora_rank, lora_alpha=4 * args.lora_rank, target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.model), lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)

    subbatch = SubbatchPlugin(accelerator, model, config=args.config)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 0, subbatch.num_steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if args.resume and (checkpoint := latest_checkpoint(args.output)):
        accelerator.load_state(str(checkpoint))

    for batch in subbatch:
        with accelerator.accumulate(model):
            loss = subbatch.loss(model, batch)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if batch.is_last:
            accelerator.print(f"step {batch.step}: loss {subbatch.figures()['loss']:.4f}")
            if subbatch.cursor % args.save_every == 0:
                save_checkpoint(accelerator, args.output, subbatch.cursor)
    accelerator.wait_for_everyone()
    save_pretrained(accelerator.unwrap_model(model), args.output, is_first=accelerator.is_main_process)
    accelerator.end_training()


if __name__ == "__main__":
    main()
