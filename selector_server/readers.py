"""The rows of a file, read as a stream: however large it is and wherever it lies, a few batches of it are in memory."""

from __future__ import annotations

import errno
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from selector_server.parts import Part, reason
from shared.errors import DataError

Rows = list[dict[str, Any]]
ROWS_PER_READ = 1000
_CHUNK = 1 << 20
# Of an array's elements: what is broken would else be read to the end of the file.
_LONGEST = 1 << 28
_NO_SPACE = re.compile(r"\s*")


def read(part: Part, *, revision: str | None, cache: Path) -> Iterator[Rows]:
    """The rows of a part, a thousand at a time.

    Args:
        part: A file, or a dataset of the hub.
        revision: Branch, tag or commit of a dataset.
        cache: Where `datasets` keeps a dataset's tables while they are read.

    Raises:
        DataError: it can't be read.
    """
    try:
        if part.files is None:
            yield from _of_the_hub(part, revision, cache)
            return
        with part.files.open(part.path, "rb") as raw:
            if part.path.partition("?")[0].lower().endswith(".parquet"):
                yield from _parquet(raw)
            else:
                yield from _in_batches(_json(_plain(raw, part.path)))
    except (DataError, GeneratorExit):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unreadable(part, error) from error
    except Exception as error:  # whatever parsers and networks raise
        raise _unreadable(part, error) from error


def _unreadable(part: Part, error: Exception) -> DataError:
    return DataError(f"{part.name} can't be read ({reason(error, at=part.path)}): repair it or leave it out")


def _of_the_hub(part: Part, revision: str | None, cache: Path) -> Iterator[Rows]:
    try:
        rows = datasets.load_dataset(part.path, split="train", revision=revision, cache_dir=str(cache))
    except Exception as error:  # its own, its readers' and the network's
        wrapped = isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__
        if isinstance(wrapped, OSError):
            raise wrapped from error
        raise DataError(
            f"{part.name} is no file or folder here, and as a dataset of the hub it can't be read "
            f"({reason(wrapped or error)}): check the path or the id; without a network, download it first"
        ) from error
    for batch in rows.with_format("arrow").iter(ROWS_PER_READ):
        yield batch.to_pylist()


def _parquet(raw: Any) -> Iterator[Rows]:
    for batch in pq.ParquetFile(raw, pre_buffer=False).iter_batches(ROWS_PER_READ):
        yield batch.to_pylist()


def _plain(raw: Any, path: str) -> Any:
    """The file's text, unpacked where its name says that it is packed."""
    name = path.partition("?")[0].lower()
    if name.endswith(".gz"):
        return gzip.open(raw)
    if name.endswith(".zst"):
        return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return raw


def _in_batches(rows: Iterable[dict[str, Any]]) -> Iterator[Rows]:
    stream = iter(rows)
    while batch := list(islice(stream, ROWS_PER_READ)):
        yield batch


def _json(stream: Any) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, or of JSON lines."""
    text = io.TextIOWrapper(io.BufferedReader(_Raw(stream), _CHUNK), encoding="utf-8-sig", errors="strict")
    first = text.read(1)
    while first.isspace():
        first = text.read(1)
    found = _array(text) if first == "[" else _lines(text, first)
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise ValueError(f"JSON row {number} is {type(row).__name__}, a row is an object with a value by column")
        yield row


class _Raw(io.RawIOBase):
    """Any binary stream as Python's own, which alone can be buffered and decoded."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _lines(text: io.TextIOWrapper, begun: str) -> Iterator[Any]:
    """JSON lines, of whose first a character has been read."""
    for number, line in enumerate(text, 1):
        line, begun = begun + line, ""
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"JSON parse error in line {number}: {error.msg}") from None
    if begun:
        raise ValueError("JSON parse error in line 1: it ends after a character")


def _array(text: io.TextIOWrapper) -> Iterator[Any]:
    """The elements of an array whose bracket has been read; a chunk is in memory, or the element that is longer."""
    decoder, held, at, number, after_element, size = json.JSONDecoder(), "", 0, 0, False, _CHUNK
    while True:
        at = _NO_SPACE.match(held, at).end()  # type: ignore[union-attr]
        if at == len(held):
            held, at = text.read(_CHUNK), 0
            if not held:
                raise ValueError(f"JSON parse error after {number} elements: the array has no end")
            continue
        if held[at] == "]":
            return
        if after_element:
            if held[at] != ",":
                raise ValueError(f"JSON parse error after {number} elements: {held[at]!r} where , or ] belongs")
            at, after_element = at + 1, False
            continue
        try:
            element, end = decoder.raw_decode(held, at)
            is_whole, problem = end < len(held), "the array has no end"  # at its end, a number may go on
        except json.JSONDecodeError as error:
            is_whole, problem = False, error.msg
        if not is_whole:
            more = text.read(size) if len(held) - at < _LONGEST else ""
            if not more:
                raise ValueError(f"JSON parse error in element {number}: {problem}")
            # Twice as much each time, so that a long element isn't parsed again for every chunk of it.
            held, at, size = held[at:] + more, 0, 2 * size
            continue
        yield element
        at, number, after_element, size = end, number + 1, True, _CHUNK
