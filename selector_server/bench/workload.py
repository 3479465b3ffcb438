"""What speed is measured on: a Phi with random weights, rows of MathInstruct's lengths, and a plain forward of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from transformers import PhiConfig, PhiForCausalLM

from shared.dataset import ROWS_SCHEMA, Manifest, SourceInfo, Store, TokenizerInfo
from shared.partition import by_token_budget
from shared.records import Row
from shared.rowloss import collate, find_answers

# Quantiles (0, 5, ..., 100 %) of the tokens of prompts, template included, and of answers: 400 rows of each of ten
# MathInstruct sources (what a source-weighted draw sees), a byte-level BPE of 8,192 entries, rows up to 512 tokens. The
# two are nearly independent (correlation 0.13). A row has 194 tokens on average, 52 % of them answer.
_PROMPT_TOKENS = (38, 54, 61, 65, 68, 71, 74, 78, 81, 84, 88, 91, 96, 100, 105, 110, 116, 122, 132, 145, 389)
_ANSWER_TOKENS = (8, 25, 39, 44, 50, 55, 60, 64, 69, 74, 79, 84, 91, 99, 109, 122, 141, 163, 196, 264, 440)
MAX_TOKENS = 512

# The fastest for a plain head on a CPU: logits of 128 tokens at vocabulary 51,200.
_LOGITS_VALUES = 128 * 51200


def make_store(*, num_rows: int, vocab_size: int, num_sources: int = 10, seed: int = 0) -> Store:
    """Rows of random tokens with MathInstruct's lengths, in memory; all sources are of one size."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, len(_PROMPT_TOKENS))
    prompt, answer = (
        np.interp(rng.random(2 * num_rows), grid, q).astype(int) for q in (_PROMPT_TOKENS, _ANSWER_TOKENS)
    )
    fits = np.flatnonzero(prompt + answer <= MAX_TOKENS)[:num_rows]
    columns = {
        "input_ids": [rng.integers(0, vocab_size, size, dtype=np.int32) for size in (prompt + answer)[fits]],
        "num_prompt_tokens": prompt[fits],
        "origin": np.arange(num_rows),
    }
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
    return Store(Path("random"), manifest, [pa.record_batch(columns, schema=ROWS_SCHEMA)])


def make_model(
    *, vocab_size: int, device: torch.device, lora_rank: int | None = None, layers: int = 8, width: int = 256
) -> Any:
    """A Phi with random weights, bare or with LoRA on all linear modules of its layers."""
    torch.manual_seed(0)
    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=MAX_TOKENS,
        )
    )
    if lora_rank is None:
        return model.to(device).eval()
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
    logits = torch.empty(max(1, _LOGITS_VALUES // vocab_size), vocab_size, device=device)
    with torch.inference_mode():
        for positions in by_token_budget([len(row.input_ids) for row in rows], budget=tokens):
            batch = collate([rows[position] for position in positions], device=device)
            answers = find_answers(batch["labels"])
            hidden = decoder(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[answers.predicting]
            for part, targets in zip(hidden.split(len(logits)), answers.targets.split(len(logits)), strict=True):
                torch.addmm(head.bias, part, head.weight.T, out=logits[: len(part)])
                found.append(logits[: len(part)].gather(1, targets[:, None]))
    return torch.cat(found)
