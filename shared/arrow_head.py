"""What an Arrow record batch message says of itself, read before Arrow reserves memory for what it claims to hold.

Arrow decompresses a buffer into as many bytes as the buffer says it has: sixteen megabytes on the wire may ask for
terabytes. pyarrow doesn't say whether a message is compressed, its header does: a FlatBuffers table, of which two
fields matter here (format/Message.fbs of the Arrow specification).
"""

from __future__ import annotations

import struct

from shared.errors import WireError

# Places of fields in the tables Message and RecordBatch.
_MESSAGE_HEADER, _MESSAGE_METADATA, _BATCH_LENGTH, _BATCH_COMPRESSION = 2, 4, 0, 3


def plain_batch_rows(metadata: bytes) -> int:
    """The rows of an uncompressed record batch, from its message's header.

    Raises:
        WireError: the batch is compressed, or this is no such header.
    """
    try:
        message = _follow(metadata, 0)
        batch = _follow(metadata, message + _field(metadata, message, _MESSAGE_HEADER))
        # Early releases of Arrow said it in the message's own metadata, which is still understood.
        if _field(metadata, batch, _BATCH_COMPRESSION) or _field(metadata, message, _MESSAGE_METADATA):
            raise WireError("a selection is compressed: only plain record batches are taken")
        at = _field(metadata, batch, _BATCH_LENGTH)
        return int(struct.unpack_from("<q", metadata, batch + at)[0]) if at else 0
    except struct.error as error:
        raise WireError(f"a selection's header is not one of Arrow: {error}") from None


def _follow(data: bytes, at: int) -> int:
    """Where an offset points to."""
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: bytes, table: int, field: int) -> int:
    """Where a field of a table stands, relative to the table; 0 where it has its default."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    if vtable < 0:
        raise WireError("a selection's header is not one of Arrow: it points before its beginning")
    (size,) = struct.unpack_from("<H", data, vtable)
    place = 4 + 2 * field
    return int(struct.unpack_from("<H", data, vtable + place)[0]) if place + 2 <= size else 0
