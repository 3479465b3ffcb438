"""LoRA on a DeepSpeed engine without Accelerate, on sub-batches from a selector server; resumes where it was stopped.

deepspeed --num_gpus 2 deploy/examples/native_deepspeed.py --config run.toml --output out/run

Under `torchrun` it runs without GPUs, too.
"""

import argparse
from pathlib import Path

import deepspeed
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from shared.config import load_config
from train_client import SubbatchPlugin
from train_client.whole import save_pretrained

SAVE_EVERY = 100

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--local_rank", type=int)  # the deepspeed launcher's
known, overrides = parser.parse_known_args()
config = load_config(known.config, overrides)

deepspeed.init_distributed()
torch.manual_seed(config.run.seed)  # the same adapter on every rank
model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4),
    config={
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
subbatch = SubbatchPlugin.for_engine(engine, config)

checkpoints = known.output / "checkpoints"
if (checkpoints / "latest").exists():
    _, client_state = engine.load_checkpoint(str(checkpoints))
    subbatch.load_state_dict(client_state["subbatch"])
for batch in subbatch:
    engine.backward(subbatch.loss(engine, batch))
    engine.step()
    if batch.is_last and subbatch.last_step:
        if engine.global_rank == 0:
            print(f"step {batch.step}: loss {subbatch.last_step.loss:.4f}", flush=True)
        if subbatch.cursor % SAVE_EVERY == 0 or subbatch.cursor == subbatch.num_steps:
            engine.save_checkpoint(str(checkpoints), client_state={"subbatch": subbatch.state_dict()})

save_pretrained(engine.module, known.output / "model", is_first=engine.global_rank == 0)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
