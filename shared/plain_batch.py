"""An Arrow stream that holds one record batch, read without believing what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import pyarrow as pa

from shared.arrow_head import plain_batch_rows
from shared.errors import WireError

WIRE_VERSION = 1
_MESSAGES = 2
_MAX_SHOWN = 400


def write_batch(batch: pa.RecordBatch) -> bytes:
    """An Arrow IPC stream holding one record batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def read_batch(
    payload: bytes, columns: Mapping[str, pa.DataType], *, what: str
) -> tuple[pa.RecordBatch, dict[str, str]]:
    """The one record batch of a stream and its schema's metadata; nothing is read before its size is known to be real.

    Args:
        payload: The stream.
        columns: Name and type of each column that it must have, in order.
        what: It is, for errors.

    Raises:
        WireError: not such a stream, compressed, other columns, nulls, or another wire version.
    """
    try:
        messages = list(islice(pa.ipc.MessageReader.open_stream(payload), _MESSAGES + 1))
        kinds = [message.type for message in messages]
        if kinds != ["schema", "record batch"]:
            raise WireError(f"{what}: expected a schema and one record batch, got {kinds}")
        head, body = messages
        schema = pa.ipc.read_schema(head)
        shared = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        if shared.get("wire_version", str(WIRE_VERSION)) != str(WIRE_VERSION):
            raise WireError(
                f"{what} has wire version {shared['wire_version'][:_MAX_SHOWN]}, this side speaks {WIRE_VERSION}: "
                "run the same subbatch release on server and trainers"
            )
        # A list, since a column that comes twice is wrong too.
        got = [(field.name, field.type) for field in schema]
        if got != list(columns.items()):
            raise WireError(
                f"{what} has columns {str(got)[:_MAX_SHOWN]}, expected {columns}: run the same subbatch release on "
                "server and trainers"
            )
        rows = plain_batch_rows(body.metadata.to_pybytes())
        if not 0 <= rows * _least_row_bytes(columns) <= body.body.size:
            raise WireError(f"{what} claims {rows} rows in {body.body.size} bytes")
        batch = pa.ipc.read_record_batch(body, schema)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise WireError(f"{what} is not an Arrow stream: {error}") from None
    for name in columns:
        if batch.column(name).null_count:
            raise WireError(f"{what}, column {name} has nulls")
    return batch, shared


def _least_row_bytes(columns: Mapping[str, pa.DataType]) -> int:
    """What a row takes at least, in all columns; of a list, its offset."""
    return sum(4 if pa.types.is_list(kind) else kind.byte_width for kind in columns.values())
