"""Rows in the order of the data in, a store's batches by source out, through a file: memory holds a few batches.

What has come in is held by source and, when it is too much, written to one Arrow file, a batch for each source. What is
kept in memory of that is which batches are whose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.dataset import SCHEMAS, SourceInfo
from shared.errors import DataError
from shared.records import Row
from shared.store_writer import ROWS_PER_BATCH, TOKENS_PER_BATCH

# Held at a time, and of each row whatever its length.
_HELD_TOKENS, _ROW_TOKENS = 1 << 24, 64
_ALL_DROPPED = (
    "as instruction or output is blank, nobody answers, or no answer token fits max_length: raise it, check the "
    "columns, or leave the source out"
)


class Spill:
    """The rows of a store that is being prepared."""

    def __init__(self, file: Path, *, format_version: int) -> None:
        """Start a file; `format_version` is a key of `shared.dataset.SCHEMAS`."""
        self._file, self._schema = file, SCHEMAS[format_version]
        self._writer = pa.ipc.new_file(str(file), self._schema)
        self._held: dict[str, list[tuple[Row, int]]] = {}
        self._tokens_held = 0
        self._batches: dict[str, list[int]] = {}
        self._written = 0
        self._rows: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._dropped: dict[str, int] = {}

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    def __len__(self) -> int:
        return sum(self._rows.values())

    def add(self, source: str, origin: int, row: Row | None) -> None:
        """Take the next row of a source, or count that it was dropped.

        Args:
            source: Its name.
            origin: The row's number in the data.
            row: The row; None where it is dropped.
        """
        if row is None:
            self._dropped[source] = self._dropped.get(source, 0) + 1
            return
        self._held.setdefault(source, []).append((row, origin))
        self._rows[source] = self._rows.get(source, 0) + 1
        self._tokens[source] = self._tokens.get(source, 0) + len(row.input_ids)
        self._tokens_held += len(row.input_ids) + _ROW_TOKENS
        if self._tokens_held >= _HELD_TOKENS:
            self._write()

    def sources(self) -> tuple[SourceInfo, ...]:
        """All sources, by name.

        Raises:
            DataError: nothing is left of one.
        """
        for name, dropped in sorted(self._dropped.items()):
            if name not in self._rows:
                raise DataError(f"source {name!r} has {dropped} rows and all would be dropped, {_ALL_DROPPED}")
        return tuple(
            SourceInfo(name=name, rows=rows, mean_tokens=self._tokens[name] / rows, dropped=self._dropped.get(name, 0))
            for name, rows in sorted(self._rows.items())
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches of the store: sources by name, the rows of each as they came. Nothing can be added any more."""
        self._write()
        self._writer.close()
        with pa.memory_map(str(self._file)) as mapped:
            reader = pa.ipc.open_file(mapped)
            held: list[pa.RecordBatch] = []
            rows = tokens = 0
            for name in sorted(self._batches):
                for number in self._batches[name]:
                    rest = reader.get_batch(number)
                    while rest.num_rows:
                        ends = rest.column("input_ids").value_lengths().to_numpy().cumsum()
                        fit = min(int(np.searchsorted(ends, TOKENS_PER_BATCH - tokens, "right")), ROWS_PER_BATCH - rows)
                        if not fit and not rows:  # longer than a batch is meant to be
                            fit = 1
                        if fit:
                            held.append(rest.slice(0, fit))
                            rows, tokens, rest = rows + fit, tokens + int(ends[fit - 1]), rest.slice(fit)
                        if rest.num_rows or rows == ROWS_PER_BATCH:
                            yield _joined(held)
                            held, rows, tokens = [], 0, 0
            if held:
                yield _joined(held)

    def _write(self) -> None:
        for source, rows in self._held.items():
            self._writer.write_batch(self._as_batch(rows))
            self._batches.setdefault(source, []).append(self._written)
            self._written += 1
        self._held, self._tokens_held = {}, 0

    def _as_batch(self, rows: list[tuple[Row, int]]) -> pa.RecordBatch:
        columns = [
            _lists([row.input_ids for row, _ in rows]),
            pa.array([row.num_prompt_tokens for row, _ in rows], pa.int32()),
            pa.array([origin for _, origin in rows], pa.int64()),
        ]
        if "mask_edges" in self._schema.names:
            columns.append(_lists([row.mask_edges for row, _ in rows]))
        return pa.record_batch(columns, schema=self._schema)


def _lists(arrays: list[npt.NDArray[np.int32]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays), pa.int32()))


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch with memory of its own, without what slices leave out."""
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch
