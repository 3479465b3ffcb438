"""A causal-LM loop in Accelerate's style, as people have it before they train sub-batches; README.md changes it."""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    get_cosine_schedule_with_warmup,
)

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--rows", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
args = parser.parse_args()

accelerator = Accelerator(cpu=True)
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(args.model)
texts = ["{instruction}\n{output}".format(**json.loads(line)) for line in args.rows.open()]
loader = DataLoader(
    [tokenizer(text, truncation=True, max_length=512) for text in texts],
    batch_size=4,
    shuffle=True,
    collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"])
model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.model), lora).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)

model, optimizer = accelerator.prepare(model, optimizer)
loader = accelerator.prepare(loader)
scheduler = accelerator.prepare(get_cosine_schedule_with_warmup(optimizer, 0, len(loader) * accelerator.num_processes))
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

accelerator.wait_for_everyone()
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(args.output)
model, optimizer = accelerator.free_memory(model, optimizer)
accelerator.end_training()
