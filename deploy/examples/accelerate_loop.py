"""A LoRA fine-tuning loop on Accelerate that trains sub-batches; five lines of it are the product's.

    accelerate launch deploy/examples/accelerate_loop.py --config run.toml --model microsoft/phi-2 --output out/phi2

Without `--config` the environment's SUBBATCH_CONFIG names the run's file. It saves every `--save-every` steps, and with
`--resume` goes on from the newest checkpoint, if there is any, on as many ranks as there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from train_client import SubbatchPlugin
from train_client.checkpoint import latest_checkpoint, save_checkpoint


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, help="the run's TOML file, which the selector reads, too")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--log-with", nargs="*", help="trackers, as Accelerate knows them")
    return parser.parse_args()


def main() -> None:
    """Train the run to its end."""
    args = arguments()
    accelerator = Accelerator(cpu=args.cpu, log_with=args.log_with, project_dir=args.output)
    accelerator.init_trackers("subbatch")
    set_seed(0)
    lora = LoraConfig(r=args.lora_rank, lora_alpha=4 * args.lora_rank, target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.model), lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)

    model, optimizer = accelerator.prepare(model, optimizer)
    subbatch = SubbatchPlugin(accelerator, model, config=args.config)
    scheduler = accelerator.prepare(get_cosine_schedule_with_warmup(optimizer, 0, subbatch.num_steps))
    if args.resume and (checkpoint := latest_checkpoint(args.output)):
        accelerator.load_state(str(checkpoint))

    for batch in subbatch:
        with accelerator.accumulate(model):
            loss = subbatch.loss(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if batch.is_last:
            accelerator.log(subbatch.figures() | {"learning_rate": scheduler.get_last_lr()[0]}, step=batch.step)
            if subbatch.cursor % args.save_every == 0:
                save_checkpoint(accelerator, args.output, subbatch.cursor)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output)
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


if __name__ == "__main__":
    main()
