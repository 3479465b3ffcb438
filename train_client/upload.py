"""One version of the weights as the messages of a push, copied as little as possible while others need the interpreter.

Protobuf copies a chunk three times before gRPC does, holding the interpreter lock that the training thread waits for.
So a message is put together from its two parts, of which protobuf makes the one that says what follows and how long.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from shared.pb.v1 import selector_pb2 as pb
from shared.weights import chunks

PUSH_METHOD = f"/{pb.DESCRIPTOR.services_by_name['SelectorService'].full_name}/PushWeights"


def push_messages(header: pb.PushWeightsHeader, payload: bytes | memoryview) -> Iterator[bytes]:
    """The serialised PushWeightsRequests of a payload: its header, then its chunks, each copied once."""
    yield pb.PushWeightsRequest(header=header).SerializeToString()
    for chunk in chunks(payload):
        yield b"".join((_framing(len(chunk)), chunk))


@lru_cache(maxsize=2)  # all chunks but the last are equally long
def _framing(num_bytes: int) -> bytes:
    """What protobuf writes before the bytes of a chunk."""
    return pb.PushWeightsRequest(chunk=bytes(num_bytes)).SerializeToString()[:-num_bytes]
