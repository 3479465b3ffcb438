"""Rows of text in, a dataset store out: what `selector-server prepare` does.

Everything is built in a hidden folder beside the target, the caches of `datasets` included, and renamed when it is
whole: a store is there or it is not. The rows stay on disk; what is held in memory is a few integers per row.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from shared.dataset import (
    MANIFEST_FILE,
    ROWS_FILE,
    ROWS_SCHEMA,
    Manifest,
    SourceInfo,
    TokenizerInfo,
    sync_folder,
    write_store,
)
from shared.errors import ConfigError, DataError, ModelError
from shared.tokenizer import HUB_ID, encode_answers, encode_prompts, load_tokenizer, tokenizer_fingerprint

TEMPLATE = "alpaca"
COLUMNS = ("source", "instruction", "output")
_TEXT = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
_READERS = {".json": "json", ".jsonl": "json", ".json.gz": "json", ".jsonl.gz": "json", ".parquet": "parquet"}
_SAYS_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0")
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
    _check_target(out, overwrite=overwrite)
    console = console or Console(stderr=True)
    encoder = load_tokenizer(tokenizer, tokenizer_revision)
    if encoder.eos_token_id is None:
        raise ModelError(f"tokenizer {tokenizer!r} has no EOS token, which ends every answer: set its eos_token")

    with _building(out) as building, _datasets_speaks_through(console):
        _say(console, f"Reading {source}")
        texts = _load(source, source_revision, cache=building / "cache")
        names, source_of = _number_sources(texts["source"])
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
            building / "store",
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
        _publish(building / "store", out, overwrite=overwrite)
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


def _load(source: str, revision: str | None, *, cache: Path) -> datasets.Dataset:
    """The texts of the source, one row for one, as memory-mapped Arrow tables."""
    files = _files(source)
    parts = {str(file): _read(file, cache) for file in files} or {source: _read_hub(source, revision, cache)}
    texts = [_text_columns(part, name) for name, part in parts.items() if part.num_rows]
    if not texts:
        raise DataError(f"{source} has no rows: give data with the columns {', '.join(COLUMNS)}")
    return datasets.concatenate_datasets(texts).with_format("arrow")


def _files(source: str) -> list[Path]:
    """The files of a source in reading order; none for a dataset of the hub."""
    path = Path(source).expanduser()
    endings = ", ".join(_READERS)
    if path.is_dir():
        shown = [f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        files = sorted(f for f in shown if _reader(f) and f.is_file())
        if not files:
            raise DataError(f"folder {source} holds no file that ends in {endings}: give one that does")
        return files
    if path.exists() and not _reader(path):
        raise DataError(f"{source} ends in {path.suffix or 'nothing'}, prepare reads {endings}: convert the file")
    if not path.exists() and (_reader(path) or not HUB_ID.fullmatch(source)):
        raise DataError(f"{source} does not exist: give a file ({endings}), a folder of them, or a dataset's id")
    return [path] if path.exists() else []


def _reader(file: Path) -> str:
    """The reader of `datasets` for a file, by its name; empty if there is none."""
    return next((reader for ending, reader in _READERS.items() if file.name.lower().endswith(ending)), "")


def _read(file: Path, cache: Path) -> datasets.Dataset:
    try:
        pattern = glob.escape(str(file.resolve()))  # `datasets` takes a name for a pattern
        return datasets.load_dataset(_reader(file), data_files=[pattern], split="train", cache_dir=str(cache))
    except Exception as error:  # the readers behind `datasets` raise anything
        reason = _reason(error)
        if any(words in reason for words in _SAYS_NO_ROWS):
            return datasets.Dataset.from_dict({})
        raise DataError(f"{file} can't be read ({reason}): repair it or leave it out") from error


def _read_hub(name: str, revision: str | None, cache: Path) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, split="train", revision=revision, cache_dir=str(cache))
    except Exception as error:  # as above, and the hub's
        raise DataError(
            f"{name} is no file or folder here, and as a dataset of the hub it can't be read ({_reason(error)}): "
            "check the path or the id; without a network, download it first"
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, on one line."""
    wrapped = isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__
    return " ".join(str(wrapped or error).split()).rstrip(".") or type(error).__name__


def _text_columns(rows: datasets.Dataset, source: str) -> datasets.Dataset:
    """The three columns of a part of the source."""
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source} has the columns {', '.join(rows.column_names)}, it lacks {', '.join(missing)}: "
            f"prepare needs {', '.join(COLUMNS)}, so rename or add them"
        )
    for name in COLUMNS:
        if (kind := rows.features[name]) not in (_TEXT[name], datasets.Value("large_string")):
            held = kind.dtype if isinstance(kind, datasets.Value) else type(kind).__name__
            raise DataError(f"column {name!r} of {source} holds {held}, prepare needs text: convert it")
    rows = rows.select_columns(list(COLUMNS))
    return rows if rows.features == _TEXT else rows.cast(_TEXT)


def _number_sources(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The names of the sources in order, and the number of each row's source, int32 [rows]."""
    unnamed = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "")
    if (row := pc.index(unnamed, True).as_py()) >= 0:
        raise DataError(f"row {row} has no source ({column[row].as_py()!r}): name the source of every row")
    encoded = column.dictionary_encode().combine_chunks()
    found = encoded.dictionary.to_pylist()
    names = sorted(found)
    place = {name: number for number, name in enumerate(names)}
    renumber = np.array([place[name] for name in found], dtype=np.int32)
    return names, renumber[encoded.indices.to_numpy()]


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


def _check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that a store can't take the place of."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file: give a new or empty folder for the store")
    found = {entry.name for entry in out.iterdir()}
    if found and not overwrite:
        raise DataError(
            f"{out} is not empty, it holds {min(found)}: give a new folder, or pass --overwrite to replace a store"
        )
    if foreign := found - {ROWS_FILE, MANIFEST_FILE}:
        raise DataError(
            f"{out} is not just a store, it holds {min(foreign)}: give a new folder, --overwrite replaces stores only"
        )


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to build in, removed however this ends."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".building", dir=out.parent))
    except OSError as error:
        raise DataError(f"a store can't be made at {out}: {error}; choose a folder that can be written") from error
    try:
        with _sigterm_unwinds():
            yield building
    except Exception as error:
        for cause in _causes(error):
            # An interrupted pool of processes raises a TimeoutError over the interrupt.
            if isinstance(cause, KeyboardInterrupt | SystemExit):
                raise cause from None
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(building).free // 2**20
                raise DataError(
                    f"no room for a store at {out}, {free} MiB are left there: preparing takes about four times the "
                    "size of the data, so make room or choose another disk"
                ) from error
        if isinstance(error, OSError):
            raise DataError(f"a store can't be made at {out}: {error}; nothing was written") from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(store: Path, out: Path, *, overwrite: bool) -> None:
    """Give a whole store its name."""
    _check_target(out, overwrite=overwrite)
    replaced = store.with_name("replaced")
    if overwrite and out.exists():
        os.rename(out, replaced)
    try:
        os.rename(store, out)
    except BaseException:
        if replaced.exists():
            os.rename(replaced, out)
        raise
    sync_folder(out.parent)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end the process the way Ctrl-C does, so that what is half built is removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


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


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
