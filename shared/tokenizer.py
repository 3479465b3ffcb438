"""Text to token ids: loading a tokenizer, telling two of them apart, and the instruction template around every row.

A store is encoded with these functions and evaluation asks its questions with the same ones. A run compares tokenizers
by fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared.errors import ModelError

# The prompt of MAmmoTH, which MathInstruct was made for: Alpaca's, for instructions without further input.
PROMPT_TEMPLATES = {
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    )
}
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Parts of a tokenizer's file that decide no token id: what the last call asked for, and the way back to text.
_NO_IDS = ("truncation", "padding", "decoder", "version")


def load_tokenizer(path: str, revision: str = "main") -> PreTrainedTokenizerFast:
    """Load a fast tokenizer; code that comes with it is never run.

    Args:
        path: A hub id, a folder, or a .gguf file.
        revision: Branch, tag or commit, for a hub id.

    Raises:
        ModelError: nothing there, nothing usable there, the hub can't be reached, or the tokenizer has no fast version.
    """
    name, gguf = _locate(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **gguf)
    except ImportError as error:
        raise ModelError(f"tokenizer {path!r} needs a package that isn't installed: {_one_line(error)}") from error
    except Exception as error:  # from_pretrained documents none of what it raises
        local = "give a folder with a tokenizer.json, or the .gguf file of a model"
        remedy = local if Path(name).is_dir() else f"check the id; without a network, {local}"
        raise ModelError(f"tokenizer {path!r} can't be loaded ({_one_line(error)}): {remedy}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer {path!r} is a {type(tokenizer).__name__}, which has no fast version: use a model with a "
            "tokenizer.json, or convert its tokenizer first"
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A sha256 over everything that decides token ids: equal fingerprints encode every text alike.

    Vocabulary, merges, normalisation, pre-tokenisation, added and special tokens count; padding and truncation don't.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    identity = {
        "backend": {part: value for part, value in backend.items() if part not in _NO_IDS},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast, instructions: Sequence[str], *, template: str
) -> list[list[int]]:
    """Token ids of instructions in their template, with BOS in front where the tokenizer adds one by itself.

    Args:
        tokenizer: A fast tokenizer.
        instructions: What is asked.
        template: A name in PROMPT_TEMPLATES; a store's manifest says which was used.
    """
    texts = [PROMPT_TEMPLATES[template].format(instruction=instruction) for instruction in instructions]
    empty = tokenizer("")["input_ids"]
    bos = [tokenizer.bos_token_id] if empty and empty[0] == tokenizer.bos_token_id else []
    return [bos + ids for ids in _encode(tokenizer, texts)]


def encode_answers(tokenizer: PreTrainedTokenizerFast, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of answers, each with EOS behind it.

    A prompt and its answer are encoded apart and then joined: no merge crosses the boundary, so that labels begin with
    the answer's first token and a prompt has the same ids in generation.
    """
    return [[*ids, tokenizer.eos_token_id] for ids in _encode(tokenizer, answers)]


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # longer than the model's maximum is no surprise here: rows are cut afterwards
    )
    return list(encoded["input_ids"])


def _locate(path: str) -> tuple[str, dict[str, str]]:
    """What to ask transformers for: a folder or hub id, and the file in it where it is a GGUF."""
    local = Path(path).expanduser()
    if path.lower().endswith(".gguf"):
        if not local.is_file():
            raise ModelError(f"tokenizer {path!r}: there is no such file; give the path of a .gguf file")
        return str(local.parent), {"gguf_file": local.name}
    if path and local.is_dir():
        return str(local), {}
    if local.exists() or not HUB_ID.fullmatch(path):
        kind = "a file" if local.is_file() else "neither a folder on this machine nor a hub id"
        raise ModelError(
            f"tokenizer {path!r} is {kind}: give a hub id such as 'microsoft/phi-2', a folder with a tokenizer.json, "
            "or a .gguf file"
        )
    return path, {}


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 240, placeholder=" …")
