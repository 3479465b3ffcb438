"""Rows of random tokens with MathInstruct's lengths: what speed is measured on, where what is learnt doesn't matter."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shared.dataset import ROWS_SCHEMA

# Quantiles (0, 5, ..., 100 %) of the tokens of prompts, template included, and of answers: 400 rows of each of ten
# MathInstruct sources (what a source-weighted draw sees), a byte-level BPE of 8,192 entries, rows up to 512 tokens. The
# two are nearly independent (correlation 0.13). A row has 194 tokens on average, 52 % of them answer.
_PROMPT_TOKENS = (38, 54, 61, 65, 68, 71, 74, 78, 81, 84, 88, 91, 96, 100, 105, 110, 116, 122, 132, 145, 389)
_ANSWER_TOKENS = (8, 25, 39, 44, 50, 55, 60, 64, 69, 74, 79, 84, 91, 99, 109, 122, 141, 163, 196, 264, 440)
MAX_TOKENS = 512


def random_rows(num_rows: int, *, vocab_size: int, seed: int) -> pa.RecordBatch:
    """So many rows of a store, of at most MAX_TOKENS tokens.

    Args:
        num_rows: Rows, >= 1.
        vocab_size: Token ids are below it.
        seed: Which lengths and tokens.

    Returns:
        Columns of `shared.dataset.ROWS_SCHEMA`.
    """
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
    return pa.record_batch(columns, schema=ROWS_SCHEMA)
