"""Stores of any size, made as fast as a disk takes them and in the memory of one record batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.dataset import ROWS_SCHEMA, Manifest, SourceInfo, TokenizerInfo
from shared.store_writer import ROWS_PER_BATCH, write_store

VOCABULARY = 512
MIN_TOKENS, MAX_TOKENS = 16, 112
# Tokens, one offset, prompt tokens and the origin of a row of mean length.
BYTES_PER_ROW = 4 * (MIN_TOKENS + MAX_TOKENS) // 2 + 16
NUM_SOURCES = 14
_SEED = 0


def source_rows(rows: int) -> npt.NDArray[np.int64]:
    """Rows of each source: the largest has a thousand times as many as the smallest, as in MathInstruct.

    Args:
        rows: Of all sources, at least 10,000, so that each has some.
    """
    shares = np.geomspace(1000, 1, NUM_SOURCES)
    sizes: npt.NDArray[np.int64] = np.floor(rows * shares / shares.sum()).astype(np.int64)
    sizes[0] += rows - sizes.sum()
    return sizes


def write_synthetic(folder: Path, *, rows: int) -> Manifest:
    """Write a store of random tokens.

    Args:
        folder: Doesn't exist yet.
        rows: How many, at least 10,000; a row takes about BYTES_PER_ROW on the disk.
    """
    mean = (MIN_TOKENS + MAX_TOKENS) / 2
    return write_store(
        folder,
        _batches(rows),
        sources=[
            SourceInfo(name=f"source {number:02}", rows=size, mean_tokens=mean, dropped=0)
            for number, size in enumerate(source_rows(rows).tolist())
        ],
        tokenizer=TokenizerInfo(name="none", fingerprint="none", eos_token_id=0, pad_token_id=None),
        template="none",
        max_length=MAX_TOKENS,
        prepared_from="random tokens",
    )


def _batches(rows: int) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(_SEED)
    for start in range(0, rows, ROWS_PER_BATCH):
        count = min(ROWS_PER_BATCH, rows - start)
        lengths = rng.integers(MIN_TOKENS, MAX_TOKENS, count, endpoint=True)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        ids = rng.integers(0, VOCABULARY, offsets[-1], dtype=np.int32)
        columns = [
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
            pa.array(lengths // 2, pa.int32()),
            pa.array(np.arange(start, start + count)),
        ]
        yield pa.record_batch(columns, schema=ROWS_SCHEMA)
