"""What speed is measured on: a Phi with random weights, rows of MathInstruct's lengths, and a plain forward of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import PhiConfig, PhiForCausalLM

from shared.dataset import Manifest, SourceInfo, Store, TokenizerInfo
from shared.partition import by_token_budget
from shared.records import Row
from shared.rowloss import collate, find_answers
from shared.synthetic.random_rows import MAX_TOKENS, random_rows

# The fastest for a plain head on a CPU: logits of 128 tokens at vocabulary 51,200. A GPU wants more at a time.
_CPU_LOGITS, _GPU_LOGITS = 128 * 51200, 4096 * 51200


@dataclass(frozen=True)
class ModelSize:
    """How large a model is, and the dtype of its weights, torch's name."""

    layers: int
    width: int
    dtype: str = "float32"


SMALL = ModelSize(layers=8, width=256)
PHI2 = ModelSize(layers=32, width=2560, dtype="bfloat16")


def make_store(*, num_rows: int, vocab_size: int, num_sources: int = 10, seed: int = 0) -> Store:
    """Rows of random tokens with MathInstruct's lengths, in memory; all sources are of one size."""
    sizes = np.bincount(np.arange(num_rows) % num_sources)
    manifest = Manifest(
        fingerprint="random",
        prepared_from="random tokens",
        tokenizer=TokenizerInfo(name="none", fingerprint="none", eos_token_id=0, pad_token_id=None),
        template="none",
        max_length=MAX_TOKENS,
        max_token_id=vocab_size - 1,
        rows=num_rows,
        rows_bytes=0,
        sources=tuple(
            SourceInfo(name=f"source {i:03}", rows=int(n), mean_tokens=0.0, dropped=0) for i, n in enumerate(sizes)
        ),
    )
    return Store(Path("random"), manifest, [random_rows(num_rows, vocab_size=vocab_size, seed=seed)])


def make_model(*, vocab_size: int, device: torch.device, lora_rank: int | None = None, size: ModelSize = SMALL) -> Any:
    """A Phi with random weights, made on the device, bare or with LoRA on all linear modules of its layers."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        max_position_embeddings=MAX_TOKENS,
    )
    with device:
        model = PhiForCausalLM(config).to(getattr(torch, size.dtype))
    if lora_rank is None:
        return model.eval()
    targets = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    return get_peft_model(model, LoraConfig(r=lora_rank, target_modules=targets)).to(device).eval()


def plain_forward(model: Any, rows: Sequence[Row], *, device: torch.device, tokens: int) -> torch.Tensor:
    """Each answer token's logit: a plain forward as one would write it who minds the time.

    Rows sorted by length and padded in batches of `tokens`, no mask, inference mode, the head once on the answer tokens
    alone, in pieces of the best size for a cache and into memory that is there already (new memory for each piece costs
    up to half as much again); not even the loss is computed.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    vocab_size, found = head.weight.shape[0], []
    at_a_time = (_GPU_LOGITS if device.type == "cuda" else _CPU_LOGITS) // vocab_size
    logits = torch.empty(max(1, at_a_time), vocab_size, device=device, dtype=head.weight.dtype)
    with torch.inference_mode():
        for positions in by_token_budget([len(row.input_ids) for row in rows], budget=tokens):
            batch = collate([rows[position] for position in positions], device=device)
            answers = find_answers(batch["labels"])
            hidden = decoder(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[answers.predicting]
            for part, targets in zip(hidden.split(len(logits)), answers.targets.split(len(logits)), strict=True):
                torch.addmm(head.bias, part, head.weight.T, out=logits[: len(part)])
                found.append(logits[: len(part)].gather(1, targets[:, None]))
    return torch.cat(found)
