"""LoRA fine-tuning with Hugging Face's Trainer that trains sub-batches.

    torchrun --nproc_per_node 4 deploy/examples/hf_trainer.py --config run.toml --model_path microsoft/phi-2 \
        --output_dir out/phi2 --learning_rate 2e-5 --lr_scheduler_type cosine --per_device_train_batch_size 8

Every argument of TrainingArguments can be given, but for those that the run decides, such as max_steps. With
`--resume_from_checkpoint latest` it goes on from the newest whole checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments, set_seed

from train_client import SubbatchMixin


class SubbatchTrainer(SubbatchMixin, Trainer):
    """The Trainer, on sub-batches."""


@dataclass
class ScriptArguments:
    """What this script takes beside TrainingArguments."""

    model_path: str
    config: str | None = field(
        default=None, metadata={"help": "the run's TOML file, which the selector reads, too; else SUBBATCH_CONFIG's"}
    )
    lora_rank: int = 128


def main() -> None:
    """Train the run to its end."""
    script, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    rank = script.lora_rank
    lora = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(script.model_path), lora)

    trainer = SubbatchTrainer(model=model, args=args, subbatch=script.config)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint == "latest" or args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
