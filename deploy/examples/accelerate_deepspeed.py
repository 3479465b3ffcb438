r"""LoRA with DeepSpeed's ZeRO-3 through Accelerate, on sub-batches from a selector server.

    accelerate launch --use_deepspeed --zero_stage 3 --num_processes 2 deploy/examples/accelerate_deepspeed.py \
        --config run.toml --output out/model

With `--cpu` and `torchrun` in place of the launcher, ACCELERATE_USE_DEEPSPEED=true, it runs without GPUs.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from shared.config import load_config
from train_client import SubbatchPlugin
from train_client.whole import save_pretrained

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--cpu", action="store_true")
known, overrides = parser.parse_known_args()
config = load_config(known.config, overrides)

PartialState(cpu=known.cpu)  # told that there is no GPU, Accelerator itself would leave out DeepSpeed
accelerator = Accelerator()
set_seed(config.run.seed)  # the same adapter on every rank
model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

subbatch = SubbatchPlugin(accelerator, model, config)
model, optimizer = accelerator.prepare(model, optimizer)
for batch in subbatch:
    with accelerator.accumulate(model):
        loss = subbatch.loss(model, batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    if batch.is_last and subbatch.last_step:
        accelerator.print(f"step {batch.step}: loss {subbatch.last_step.loss:.4f}")

accelerator.wait_for_everyone()
save_pretrained(accelerator.unwrap_model(model), known.output, is_first=accelerator.is_main_process)
accelerator.end_training()
