"""LoRA fine-tuning with TRL's SFTTrainer that trains sub-batches.

    torchrun --nproc_per_node 4 deploy/examples/trl_sft.py --config run.toml --model_path microsoft/phi-2 \
        --output_dir out/phi2 --learning_rate 2e-5 --lr_scheduler_type cosine --per_device_train_batch_size 8

Templates, truncation and which tokens have a loss were decided when `selector-server prepare` made the store. With
`--resume_from_checkpoint latest` it goes on from the newest whole checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from trl import SFTConfig, SFTTrainer

from train_client import SubbatchMixin


class SubbatchSFTTrainer(SubbatchMixin, SFTTrainer):
    """The SFTTrainer, on sub-batches."""


@dataclass
class ScriptArguments:
    """What this script takes beside SFTConfig."""

    model_path: str
    config: str | None = field(
        default=None, metadata={"help": "the run's TOML file, which the selector reads, too; else SUBBATCH_CONFIG's"}
    )
    lora_rank: int = 128


def main() -> None:
    """Train the run to its end."""
    script, args = HfArgumentParser((ScriptArguments, SFTConfig)).parse_args_into_dataclasses()
    set_seed(args.seed)
    rank = script.lora_rank
    trainer = SubbatchSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(script.model_path),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(script.model_path),
        peft_config=LoraConfig(
            r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
        ),
        subbatch=script.config,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint == "latest" or args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
