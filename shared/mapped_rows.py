"""The file of a store's rows, mapped into memory, which takes as little of it for ten million rows as for a thousand.

Pages that were read count as the process's memory until the system wants them back. A store that is drawn from at
random would so come to hold all of its file; hence whoever reads says how much, and beyond a budget the pages are given
back (they stay in the system's cache, and come back when they are read again).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from shared.errors import DataError

# What one access may bring in: the system maps 16 pages around one that is read.
ACCESS_BYTES = 16 * mmap.PAGESIZE
_BUDGET_BYTES, _KEPT_BYTES = 1 << 27, 1 << 26
# Not on Windows, where the system decides.
_CAN_ADVISE = hasattr(mmap, "MADV_DONTNEED")


class MappedRows:
    """The record batches of an Arrow file, mapped and read-only."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        """Map a file; nothing of it but its description is read.

        Args:
            file: An Arrow IPC file.
            schema: What it has to hold.

        Raises:
            DataError: the file can't be read, or holds other columns.
        """
        try:
            with file.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if _CAN_ADVISE:  # descriptions are a page here and there: nothing around them is wanted
                self._map.madvise(mmap.MADV_RANDOM)
            self._whole = pa.py_buffer(self._map)
            reader = pa.ipc.open_file(pa.BufferReader(self._whole))
            self.batches: Sequence[pa.RecordBatch] = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            for batch in self.batches:
                batch.validate()
            if _CAN_ADVISE:
                self._map.madvise(mmap.MADV_NORMAL)
            columns = ", ".join(f"{field.name} {field.type}" for field in reader.schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file} is not an Arrow file that can be read: {error}; prepare the data again") from None
        if not reader.schema.equals(schema):
            wanted = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise DataError(f"{file} has the columns {columns}, a store has {wanted}: prepare the data again")
        self._read = 0
        self._given_back = [(0, len(self._map))]

    def prefetch(self, buffers: Iterable[pa.Buffer | None]) -> None:
        """Have the system read parts of the file into its cache, meanwhile; that isn't memory of this process.

        Those that every draw reads: unless they are large, what has been read of them is not given back.
        """
        ranges = []
        for buffer in buffers:
            if buffer is not None and buffer.size:  # else of a batch without rows
                start = buffer.address - self._whole.address
                ranges.append((start - start % mmap.PAGESIZE, _to_page(start + buffer.size)))
        for start, end in ranges:
            if _CAN_ADVISE:
                self._map.madvise(mmap.MADV_WILLNEED, start, min(end, len(self._map)) - start)
        if sum(end - start for start, end in ranges) <= _KEPT_BYTES:
            starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
            between = zip([0, *ends], [*starts, len(self._map)], strict=True)
            self._given_back = [(start, end - start) for start, end in between if start < end]

    def account(self, num_bytes: int) -> None:
        """Say that so much was read. Views of the batches stay good, whatever is given back."""
        self._read += num_bytes
        if self._read > _BUDGET_BYTES and _CAN_ADVISE:
            for start, size in self._given_back:
                self._map.madvise(mmap.MADV_DONTNEED, start, size)
            self._read = 0


def _to_page(place: int) -> int:
    return -(-place // mmap.PAGESIZE) * mmap.PAGESIZE
