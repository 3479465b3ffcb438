"""Rows of text in, a dataset store out: what `selector-server prepare` does.

`sources` reads the texts; here they are tokenised and laid out by source; `shared.store_writer` writes them, all inside
the hidden folder of `building`. The rows stay on disk; what is held in memory is a few integers per row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from selector_server.building import STORE, build_beside, check_target, publish, remove_leftovers
from selector_server.sources import load_texts, number_sources
from shared.dataset import ROWS_SCHEMA, Manifest, SourceInfo, TokenizerInfo
from shared.errors import ConfigError, DataError, ModelError
from shared.store_writer import write_store
from shared.tokenizer import encode_answers, encode_prompts, load_tokenizer, tokenizer_fingerprint

TEMPLATE = "alpaca"
_ROWS_PER_BATCH = 4096


def prepare(
    source: str,
    *,
    tokenizer: str,
    out: Path,
    max_length: int = 512,
    source_revision: str | None = None,
    tokenizer_revision: str = "main",
    overwrite: bool = False,
    num_proc: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Tokenise rows of (source, instruction, output) into a store.

    A row is the prompt, the answer and EOS, cut at the end to max_length. It is dropped, and counted under its source,
    where there is nothing to learn from: instruction or output null or blank, or no answer token within max_length.

    Args:
        source: A JSON, JSONL (either may be gzipped) or Parquet file; a folder of them, read in the order of their
            paths; or the id of a Hugging Face dataset, of which the split "train" is taken (downloads stay in the
            hub's own cache).
        tokenizer: A hub id, a folder, or a .gguf file.
        out: The store's folder: new or empty.
        max_length: Most tokens of a row, at least 2.
        source_revision: Branch, tag or commit of a hub dataset.
        tokenizer_revision: Branch, tag or commit of a hub tokenizer.
        overwrite: Replace the store in `out`, and nothing but a store.
        num_proc: Processes that tokenise. By default this one does, with a thread per core.
        console: Where progress goes, with bars if it is a terminal; by default standard error.

    Returns:
        The manifest of the store.

    Raises:
        ConfigError: max_length or num_proc too small.
        DataError: no such data, data that can't be used, `out` taken, or no room for the store.
        ModelError: a tokenizer that can't be used, or has no EOS.
    """
    if max_length < 2 or (num_proc is not None and num_proc < 1):
        raise ConfigError(f"max_length is {max_length} and num_proc {num_proc}: give at least 2 and at least 1")
    remove_leftovers(out)
    check_target(out, overwrite=overwrite)
    console = console or Console(stderr=True)
    encoder = load_tokenizer(tokenizer, tokenizer_revision)
    if encoder.eos_token_id is None:
        raise ModelError(f"tokenizer {tokenizer!r} has no EOS token, which ends every answer: set its eos_token")

    with build_beside(out) as building, _datasets_speaks_through(console):
        _say(console, f"Reading {source}")
        texts = load_texts(source, source_revision, cache=building / "cache")
        names, source_of = number_sources(texts["source"])
        _say(console, f"Tokenising {len(texts):,} rows with {tokenizer}")
        rows = texts.map(
            _tokenise,
            batched=True,
            remove_columns=texts.column_names,
            fn_kwargs={"tokenizer": encoder, "max_length": max_length},
            num_proc=num_proc,
            new_fingerprint="tokenised",  # the name of a cache that is used once; the default hashes the tokenizer
            desc="Tokenising",
        )
        order, sources = _lay_out(rows, names, source_of)
        _say(console, f"Writing {order.size:,} rows to {out}")
        manifest = write_store(
            building / STORE,
            _in_order(rows, order),
            sources=sources,
            tokenizer=TokenizerInfo(
                name=tokenizer,
                fingerprint=tokenizer_fingerprint(encoder),
                eos_token_id=encoder.eos_token_id,
                pad_token_id=encoder.pad_token_id,
            ),
            template=TEMPLATE,
            max_length=max_length,
            prepared_from=source,
        )
        publish(building / STORE, out, overwrite=overwrite)
    return manifest


def print_summary(manifest: Manifest, console: Console) -> None:
    """Print a store's sources as a table: rows, mean tokens, dropped."""
    dropped = sum(source.dropped for source in manifest.sources)
    mean_tokens = sum(source.rows * source.mean_tokens for source in manifest.sources) / manifest.rows
    table = Table(show_footer=True, caption=f"{manifest.rows_bytes:,} bytes, fingerprint {manifest.fingerprint[:16]}")
    table.add_column("source", "all", overflow="fold")
    table.add_column("rows", f"{manifest.rows:,}", justify="right")
    table.add_column("mean tokens", f"{mean_tokens:.1f}", justify="right")
    table.add_column("dropped", f"{dropped:,}", justify="right")
    for source in manifest.sources:
        table.add_row(escape(source.name), f"{source.rows:,}", f"{source.mean_tokens:.1f}", f"{source.dropped:,}")
    console.print(table)


def _tokenise(texts: pa.Table, *, tokenizer: PreTrainedTokenizerFast, max_length: int) -> pa.Table:
    """Token ids and prompt lengths of a batch; a row to drop is one whose ids don't go past its prompt."""
    instructions = [text or "" for text in texts["instruction"].to_pylist()]
    outputs = [text or "" for text in texts["output"].to_pylist()]
    prompts = encode_prompts(tokenizer, instructions, template=TEMPLATE)
    answers = encode_answers(tokenizer, outputs)
    rows = [
        (prompt + answer)[:max_length] if instruction.strip() and output.strip() else []
        for prompt, answer, instruction, output in zip(prompts, answers, instructions, outputs, strict=True)
    ]
    return pa.table(
        {
            "input_ids": pa.array(rows, type=pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([len(prompt) for prompt in prompts], type=pa.int32()),
        }
    )


def _lay_out(
    rows: datasets.Dataset, names: list[str], source_of: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], tuple[SourceInfo, ...]]:
    """Which rows the store holds, in its order, int64 [rows of the store], and its sources.

    Raises:
        DataError: nothing is left of a source.
    """
    num_tokens = pc.list_value_length(rows["input_ids"]).to_numpy()
    kept = np.flatnonzero(num_tokens > rows["num_prompt_tokens"].to_numpy())
    order = kept[np.argsort(source_of[kept], kind="stable")]
    num_rows = np.bincount(source_of[order], minlength=len(names))
    tokens = np.bincount(source_of[order], weights=num_tokens[order], minlength=len(names))
    dropped = np.bincount(source_of, minlength=len(names)) - num_rows
    if not num_rows.all():
        gone = int(np.argmin(num_rows))
        raise DataError(
            f"source {names[gone]!r} has {dropped[gone]} rows and all would be dropped, as instruction or output is "
            "blank or no answer token fits max_length: raise it, or leave the source out"
        )
    return order, tuple(
        SourceInfo(name=name, rows=num_rows[i], mean_tokens=tokens[i] / num_rows[i], dropped=dropped[i])
        for i, name in enumerate(names)
    )


def _in_order(rows: datasets.Dataset, order: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """The store's record batches."""
    with datasets.utils.tqdm(total=order.size, desc="Writing", unit=" rows") as bar:
        for start in range(0, order.size, _ROWS_PER_BATCH):
            numbers = order[start : start + _ROWS_PER_BATCH]
            table = rows[numbers]
            columns = [table["input_ids"].combine_chunks(), table["num_prompt_tokens"].combine_chunks()]
            yield pa.record_batch([*columns, pa.array(numbers)], schema=ROWS_SCHEMA)
            bar.update(numbers.size)


@contextmanager
def _datasets_speaks_through(console: Console) -> Iterator[None]:
    """Show the bars of `datasets` on a terminal alone, and keep its log out of our errors of one line."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    if bars and not console.is_terminal:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
