"""The file of a store's rows, mapped into memory, which takes as little of it for ten million rows as for a thousand.

Pages that were read count as the process's memory until the system wants them back. A store that is drawn from at
random would so come to hold all of its file; hence whoever reads says how much, and beyond a budget the pages are given
back (they stay in the system's cache, and come back when they are read again).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from shared.errors import DataError

# What one access may bring in: the system maps 16 pages around one that is read.
ACCESS_BYTES = 16 * mmap.PAGESIZE
_BUDGET_BYTES = 1 << 26
_DONT_NEED: int | None = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows, where the system decides


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
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
            self.batches: Sequence[pa.RecordBatch] = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            for batch in self.batches:
                batch.validate()
            columns = ", ".join(f"{field.name} {field.type}" for field in reader.schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file} is not an Arrow file that can be read: {error}; prepare the data again") from None
        if not reader.schema.equals(schema):
            wanted = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise DataError(f"{file} has the columns {columns}, a store has {wanted}: prepare the data again")
        self._read = 0

    def account(self, num_bytes: int) -> None:
        """Say that so much was read. Views of the batches stay good, whatever is given back."""
        self._read += num_bytes
        if self._read > _BUDGET_BYTES and _DONT_NEED is not None:
            self._map.madvise(_DONT_NEED)
            self._read = 0
