"""Record batches in, a store on the disk out: the last step of `selector-server prepare`.

The fingerprint is made here, of what is written: equal for equal rows, tokenizer, template and max_length, however the
batches are cut. What a store is stands in `shared.dataset`; readers of one don't need this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from shared.columns import numbers
from shared.dataset import (
    MANIFEST_FILE,
    MASKED_ROWS_SCHEMA,
    ROWS_FILE,
    SCHEMAS,
    Manifest,
    SourceInfo,
    TokenizerInfo,
)

# As many as a writer should hand over at a time: fewer make a store of many rows slow to open. The tokens of a batch
# have to fit 32 bits, and memory.
ROWS_PER_BATCH, TOKENS_PER_BATCH = 1 << 16, 1 << 24


def write_store(
    folder: Path,
    batches: Iterable[pa.RecordBatch],
    *,
    sources: Sequence[SourceInfo],
    tokenizer: TokenizerInfo,
    template: str,
    max_length: int,
    prepared_from: str,
    format_version: int = 1,
) -> Manifest:
    """Write a store into a new folder. It is no store before this returns, and on the disk when it does.

    Args:
        folder: Doesn't exist yet.
        batches: Rows in store order, cut anywhere, in the columns of `format_version`.
        sources: The sources of these rows, in store order.
        tokenizer: What made the token ids.
        template: The name of the prompt template.
        max_length: Where rows were cut.
        prepared_from: The name of the data, for people.
        format_version: A key of `shared.dataset.SCHEMAS`.
    """
    folder.mkdir()
    file = folder / ROWS_FILE
    schema = SCHEMAS[format_version]
    columns = {name: hashlib.sha256() for name in ("num_tokens", "num_prompt_tokens", "input_ids")}
    if schema is MASKED_ROWS_SCHEMA:
        columns |= {"num_mask_edges": hashlib.sha256(), "mask_edges": hashlib.sha256()}
    rows, max_token_id = 0, 0
    with _durable(file) as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            ids = batch.column("input_ids")
            columns["num_tokens"].update(_little_endian(ids.value_lengths()))
            columns["num_prompt_tokens"].update(_little_endian(batch.column("num_prompt_tokens")))
            columns["input_ids"].update(_little_endian(ids.flatten()))
            if schema is MASKED_ROWS_SCHEMA:
                edges = batch.column("mask_edges")
                columns["num_mask_edges"].update(_little_endian(edges.value_lengths()))
                columns["mask_edges"].update(_little_endian(edges.flatten()))
            rows += batch.num_rows
            max_token_id = max(max_token_id, pc.max(ids.flatten()).as_py())
    content = {
        "columns": {name: digest.hexdigest() for name, digest in columns.items()},
        "sources": [[source.name, source.rows] for source in sources],
        "tokenizer": tokenizer.fingerprint,
        "template": template,
        "max_length": max_length,
    }
    manifest = Manifest(
        format_version=format_version,
        fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        prepared_from=prepared_from,
        tokenizer=tokenizer,
        template=template,
        max_length=max_length,
        max_token_id=max_token_id,
        rows=rows,
        rows_bytes=file.stat().st_size,
        sources=tuple(sources),
    )
    with _durable(folder / MANIFEST_FILE) as stream:
        stream.write(manifest.model_dump_json(indent=2).encode() + b"\n")
    sync_folder(folder)
    return manifest


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _durable(file: Path) -> Iterator[BinaryIO]:
    with file.open("xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _little_endian(column: pa.Array) -> bytes:
    return numbers(column).astype("<i4", copy=False).tobytes()
