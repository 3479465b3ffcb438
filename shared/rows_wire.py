"""Tokenised rows as one Arrow record batch, and back, with every row checked on the way in.

Columns: `index` int64, the row's number in the store, and whatever a `Row` holds: arrays as list<int32>, numbers as
int32. Nothing is null.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.columns import numbers
from shared.errors import WireError
from shared.plain_batch import WIRE_VERSION, read_batch, write_batch
from shared.records import Row

_WHAT = "rows"
_OFFSET_BYTES = np.dtype(np.int32).itemsize
_LIST = pa.list_(pa.field("item", pa.int32(), nullable=False))
_LISTS = {field.name: field.type != "int" for field in dataclasses.fields(Row)}
_COLUMNS = {"index": pa.int64()} | {name: _LIST if is_list else pa.int32() for name, is_list in _LISTS.items()}


def row_bytes(row: Row) -> int:
    """About what a row takes on the wire."""
    values = [getattr(row, name) for name in _LISTS]
    return 8 + sum(_OFFSET_BYTES + (value.nbytes if isinstance(value, np.ndarray) else 0) for value in values)


def encode_rows(index: npt.NDArray[np.int64], rows: Sequence[Row]) -> bytes:
    """An Arrow IPC stream holding the rows of an index [n], in its order."""
    columns = [pa.array(index, type=pa.int64())]
    for name, is_list in _LISTS.items():
        values = [getattr(row, name) for row in rows]
        if is_list:
            columns.append(_list_column(values))
        else:
            columns.append(pa.array(np.array(values, dtype=np.int32)))
    schema = pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()],
        metadata={"wire_version": str(WIRE_VERSION)},
    )
    return write_batch(pa.record_batch(columns, schema=schema))


def decode_rows(payload: bytes, *, max_token_id: int) -> tuple[npt.NDArray[np.int64], list[Row]]:
    """Row numbers, int64 [n], and rows; their arrays are read-only views of the payload.

    Args:
        payload: The stream.
        max_token_id: The largest token that a row may have.

    Raises:
        WireError: not one record batch of the columns above, another wire version, nulls, or a row that no store has.
    """
    batch, _ = read_batch(payload, _COLUMNS, what=_WHAT)
    index = numbers(batch.column("index"))
    columns = [_values(batch.column(name), is_list=is_list) for name, is_list in _LISTS.items()]
    rows = [Row(*fields) for fields in zip(*columns, strict=True)]
    for number, row in zip(index.tolist(), rows, strict=True):
        if number < 0 or not row.is_sound(max_token_id=max_token_id):
            raise WireError(
                f"row {number} that arrived has no answer, a mask out of order, or tokens outside 0 to {max_token_id}"
            )
    return index, rows


def _list_column(values: Sequence[npt.NDArray[np.int32]]) -> pa.Array:
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    items = np.concatenate(values).astype(np.int32, copy=False) if values else np.empty(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(items), type=_LIST)


def _values(column: pa.Array, *, is_list: bool) -> list[int] | list[npt.NDArray[np.int32]]:
    if not is_list:
        return numbers(column).tolist()  # type: ignore[no-any-return]
    offsets, items = numbers(column.offsets).tolist(), numbers(column.values)
    return [items[start:end] for start, end in itertools.pairwise(offsets)]
