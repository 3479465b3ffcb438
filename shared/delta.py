"""How one payload of weights differs from another of the same size, compressed; rebuilt from both to the last bit.

Weights change little between two pushes: of the XOR of two numbers the high bytes are mostly zero. Bytes of the same
significance are put side by side, which zstd then makes short, block by block, so that neither side holds more than a
block beyond the payloads and the delta itself. A block is its compressed size, uint32, little endian, and its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.errors import WeightsError

BLOCK_BYTES = 4 << 20
# Float32 is what deltas are for; pairs of bfloat16, and halves of float64, fare nearly as well.
_ITEM_BYTES = 4
_HEAD_BYTES = 4
# Higher levels take twice the time for no fewer bytes: what doesn't vanish at once is noise.
_LEVEL = 1

Payload = bytes | bytearray | memoryview
Bytes = npt.NDArray[np.uint8]


def encode_delta(before: Payload, after: Payload) -> bytes | None:
    """How `after` differs from `before`; None where that isn't shorter than `after`, or they aren't equally long.

    Cost: a pass over both; of memory, the delta.
    """
    if len(before) != len(after):
        return None
    codec, pieces, num_bytes = pa.Codec("zstd", compression_level=_LEVEL), [], 0
    for old, new in zip(_blocks(before), _blocks(after), strict=True):
        piece = codec.compress(_transposed(np.bitwise_xor(old, new)))
        num_bytes += _HEAD_BYTES + piece.size
        if num_bytes >= len(after):
            return None
        pieces += [piece.size.to_bytes(_HEAD_BYTES, "little"), piece]
    return b"".join(pieces)


def apply_delta(before: Payload, delta: Payload) -> bytearray:
    """The payload that `encode_delta` was given as `after`, if `before` and the delta are those: compare its hash.

    Raises:
        WeightsError: not a delta to a payload of this size.

    Cost: as of `encode_delta`; of memory, the payload.
    """
    codec, after = pa.Codec("zstd"), bytearray(len(before))
    rest = memoryview(delta)
    for old, new in zip(_blocks(before), _blocks(after), strict=True):
        size = int.from_bytes(rest[:_HEAD_BYTES], "little")
        piece, rest = rest[_HEAD_BYTES : _HEAD_BYTES + size], rest[_HEAD_BYTES + size :]
        padded = -(-len(new) // _ITEM_BYTES) * _ITEM_BYTES
        try:
            # Never more than a block, whatever the piece says of itself.
            planes = np.frombuffer(codec.decompress(piece, padded), np.uint8)
        except (OSError, pa.ArrowException) as error:
            raise WeightsError(f"a delta of weights is damaged: {error}: push the whole") from None
        np.bitwise_xor(old, planes.reshape(_ITEM_BYTES, -1).T.reshape(-1)[: len(new)], out=new)
    if rest:
        raise WeightsError(f"a delta of weights goes on for {len(rest)} bytes after its last block: push the whole")
    return after


def _blocks(payload: Payload) -> Iterator[Bytes]:
    """Views of the payload's blocks."""
    array = np.frombuffer(payload, np.uint8)
    for start in range(0, len(array), BLOCK_BYTES):
        yield array[start : start + BLOCK_BYTES]


def _transposed(block: Bytes) -> Bytes:
    """First the lowest bytes of all items, then the next; filled up with zeros to whole items."""
    padded = np.pad(block, (0, -len(block) % _ITEM_BYTES))
    return np.ascontiguousarray(padded.reshape(-1, _ITEM_BYTES).T)
