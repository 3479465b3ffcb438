"""A small model: a byte-level BPE tokenizer trained on a corpus, and a small Phi with random weights."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from shared.errors import ModelError
from shared.tokenizer import PROMPT_TEMPLATES

EOS = "<|endoftext|>"
PAD = "<|pad|>"
_BYTES = 256


def train_tokenizer(jsonl: Path, out: Path, vocab_size: int) -> None:
    """Train a tokenizer on the prompts and answers of a file and save it as a folder that AutoTokenizer loads.

    Each digit is a token, with the space before it, as suits arithmetic. Any text survives a round trip.

    Args:
        jsonl: Rows with the keys instruction and output.
        out: The folder; made if it isn't there.
        vocab_size: Entries at most, the special tokens and 256 bytes included.

    Raises:
        ModelError: vocab_size doesn't hold the bytes and the special tokens.
    """
    least = _BYTES + len((EOS, PAD))
    if vocab_size < least:
        raise ModelError(f"a byte-level tokenizer of {vocab_size} entries is too small: give at least {least}")
    with jsonl.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    prompts = (PROMPT_TEMPLATES["alpaca"].format(instruction=row["instruction"]) for row in rows)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(chain(prompts, (row["output"] for row in rows)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=PAD).save_pretrained(out)


def make_phi(
    out: Path, *, vocab_size: int, layers: int, width: int, heads: int, seed: int, max_length: int
) -> PhiForCausalLM:
    """Make a small random Phi and save it, float32, beside the tokenizer that `train_tokenizer` left in `out`.

    The output layer starts with rows of length one. With the usual 0.02 it could hardly prefer one token to another,
    and adapters can't change that: 60 steps of LoRA bring the loss to 6.6 with it, to 4.6 with ours (1.2 M parameters).

    Args:
        out: A folder with a tokenizer; AutoModelForCausalLM and AutoTokenizer load from it afterwards.
        vocab_size: Rows of the embedding, at least the tokenizer's.
        layers: Decoder layers.
        width: Hidden size, a multiple of 4 · heads (half of each head is rotated, in pairs).
        heads: Attention heads.
        seed: Which random weights.
        max_length: Longest input in tokens.

    Raises:
        ModelError: the tokenizer needs more rows, or the width doesn't suit the heads.
    """
    tokenizer = AutoTokenizer.from_pretrained(out)
    if vocab_size < len(tokenizer):
        raise ModelError(f"vocab_size {vocab_size} is less than the {len(tokenizer)} entries of the tokenizer in {out}")
    if width % (4 * heads):
        raise ModelError(f"width {width} is no multiple of 4 * heads = {4 * heads}: change one of them")
    config = PhiConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PhiForCausalLM(config).float()
        torch.nn.init.normal_(model.lm_head.weight, std=width**-0.5)
    disable_progress_bar()
    model.save_pretrained(out)
    return model
