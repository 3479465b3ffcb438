"""A source of any format in, one `datasets.Dataset` of three text columns out: the first step of `prepare`.

A JSON, JSONL or Parquet file, a folder of them and a dataset of the hub all become the same memory-mapped table of
(source, instruction, output), whose "source" column is then turned into numbers. What is tokenised comes from here.
"""

from __future__ import annotations

import glob
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import DataError
from shared.tokenizer import HUB_ID

COLUMNS = ("source", "instruction", "output")
_TEXT = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
_READERS = {".json": "json", ".jsonl": "json", ".json.gz": "json", ".jsonl.gz": "json", ".parquet": "parquet"}
_SAYS_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0")


def load_texts(source: str, revision: str | None, *, cache: Path) -> datasets.Dataset:
    """Read a source, whatever its format.

    Args:
        source: A JSON, JSONL (either may be gzipped) or Parquet file, a folder of them, or the id of a hub dataset.
        revision: Branch, tag or commit of a hub dataset.
        cache: Where `datasets` keeps the tables; they are mapped as long as the texts are used.

    Returns:
        The texts of the source, one row for one, as memory-mapped Arrow tables.

    Raises:
        DataError: no such data, no rows, columns missing, or a column that isn't text.
    """
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


def number_sources(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The names of the sources in order, and the number of each row's source, int32 [rows].

    Raises:
        DataError: a row without a source.
    """
    unnamed = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "")
    if (row := pc.index(unnamed, True).as_py()) >= 0:
        raise DataError(f"row {row} has no source ({column[row].as_py()!r}): name the source of every row")
    encoded = column.dictionary_encode().combine_chunks()
    found = encoded.dictionary.to_pylist()
    names = sorted(found)
    place = {name: number for number, name in enumerate(names)}
    renumber = np.array([place[name] for name in found], dtype=np.int32)
    return names, renumber[encoded.indices.to_numpy()]
