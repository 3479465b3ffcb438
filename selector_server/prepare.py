"""Rows of text in, a dataset store out: what `selector-server prepare` does.

`parts` says what there is to read, `readers` streams its rows, `layout` makes conversations of them, `encoding` and
`shared.chat` make token ids, `spill` puts them in a store's order and `shared.store_writer` writes it, all inside the
hidden folder of `building`. However many rows there are, a few thousand are in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from selector_server.building import STORE, build_beside, check_target, publish, remove_leftovers
from selector_server.encoding import PromptEncoder
from selector_server.filling import Filling, find_columns, read_all
from selector_server.layout import Columns
from selector_server.parts import find_parts, source_names, without_query
from selector_server.reading import Reading
from selector_server.spill import Spill
from shared.chat import ChatEncoder
from shared.dataset import Manifest, TokenizerInfo
from shared.errors import ConfigError, DataError, ModelError
from shared.store_writer import write_store
from shared.tokenizer import load_tokenizer, tokenizer_fingerprint

_BAR = (SpinnerColumn(), TextColumn("{task.description}, {task.completed:,.0f} rows"), TimeElapsedColumn())
_logger = logging.getLogger(__name__)


def prepare(
    source: str | Sequence[str],
    *,
    tokenizer: str,
    out: Path,
    max_length: int = 512,
    reading: Reading | None = None,
    chat_template: str | None = None,
    source_revision: str | None = None,
    tokenizer_revision: str = "main",
    overwrite: bool = False,
    num_proc: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Tokenise rows into a store.

    A row is its prompt and its answer, or a conversation, cut at the end to max_length. It is dropped, and counted
    under its source, where there is nothing to learn from: instruction or output null or blank, no assistant's turn,
    or no answer token within max_length.

    Args:
        source: JSON, JSONL (either also .gz or .zst) or Parquet files, folders of them, patterns, URLs, or ids of
            Hugging Face datasets, of which the split "train" is taken (downloads stay in the hub's own cache). Files of
            a folder or pattern are read in the order of their paths.
        tokenizer: A hub id, a folder, or a .gguf file.
        out: The store's folder: new or empty.
        max_length: Most tokens of a row, at least 2.
        reading: Which columns are what, and how they become turns with a loss; None: as the rows suggest.
        chat_template: The text of a chat template, in place of the tokenizer's.
        source_revision: Branch, tag or commit of hub datasets.
        tokenizer_revision: Branch, tag or commit of a hub tokenizer.
        overwrite: Replace the store in `out`, and nothing but a store.
        num_proc: Processes that tokenise. By default this one does, with a thread per core.
        console: Where progress goes, with a bar if it is a terminal; by default standard error.

    Returns:
        The manifest of the store.

    Raises:
        ConfigError: max_length or num_proc too small, or a system prompt where no template takes one.
        DataError: no such data, data that can't be used, `out` taken, or no room for the store.
        ModelError: a tokenizer that can't be used, or has no EOS or no chat template.
    """
    if max_length < 2 or (num_proc is not None and num_proc < 1):
        raise ConfigError(f"max_length is {max_length} and num_proc {num_proc}: give at least 2 and at least 1")
    reading = reading or Reading()
    named = [source] if isinstance(source, str) else list(source)
    shown = " ".join(map(without_query, named))
    remove_leftovers(out)
    check_target(out, overwrite=overwrite)
    console = console or Console(stderr=True)
    loaded = load_tokenizer(tokenizer, tokenizer_revision)
    if loaded.eos_token_id is None:
        raise ModelError(f"tokenizer {tokenizer!r} has no EOS token, which ends every answer: set its eos_token")
    if chat_template is not None:
        loaded.chat_template = chat_template

    with build_beside(out) as building, _datasets_speaks_through(console):
        _say(console, f"Reading {shown} and tokenising with {tokenizer}")
        parts = find_parts(named)
        sources_of = dict(zip(parts, source_names(parts, by=reading.sources_by), strict=True))
        rows = read_all(parts, source_revision, building / "cache")
        columns, rows = find_columns(rows, reading)
        if columns is None:
            needed = ", ".join(reading.named.needed.values())
            raise DataError(f"{shown} has no rows: give data with the columns {needed}")
        if columns.messages:
            _say(console, f"Rows are conversations, in the column {columns.messages!r}")
        encoder = _encoder(loaded, columns, reading, max_length)
        format_version = 2 if isinstance(encoder, ChatEncoder) else 1
        with Spill(building / "rows", format_version=format_version) as spill:
            filling = Filling(spill, columns, sources_of, reading)
            with Progress(*_BAR, console=console, disable=not console.is_terminal, transient=True) as progress:
                bar = progress.add_task("Tokenising", total=None)
                filling.fill(rows, encoder, num_proc, lambda: progress.update(bar, completed=len(spill)))
            if filling.refused:
                _say(console, f"{filling.refused:,} rows were refused, and are dropped")
            sources = spill.sources()
            _say(console, f"Writing {len(spill):,} rows to {out}")
            manifest = write_store(
                building / STORE,
                spill.batches(),
                sources=sources,
                tokenizer=TokenizerInfo(
                    name=tokenizer,
                    fingerprint=tokenizer_fingerprint(loaded),
                    eos_token_id=loaded.eos_token_id,
                    pad_token_id=loaded.pad_token_id,
                ),
                template=encoder.name,
                max_length=max_length,
                prepared_from=shown,
                format_version=format_version,
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


def _encoder(
    tokenizer: PreTrainedTokenizerFast, columns: Columns, reading: Reading, max_length: int
) -> PromptEncoder | ChatEncoder:
    if columns.messages or reading.template == "chat":
        return ChatEncoder(tokenizer, max_length=max_length, system=reading.system, train_on=reading.train_on)
    if reading.system is not None:
        raise ConfigError(
            f"the template {reading.template!r} takes no system prompt: leave it out, or give --template chat"
        )
    return PromptEncoder(tokenizer, template=reading.template, max_length=max_length)


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
