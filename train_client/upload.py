"""One version of the weights as the messages of a push, copied as little as possible while others need the interpreter.

Protobuf copies a chunk three times before gRPC does, holding the interpreter lock that the training thread waits for.
So a message is put together from its two parts, of which protobuf makes the one that says what follows and how long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from shared.pb.v1 import selector_pb2 as pb
from shared.weights import chunks, content_hash

PUSH_METHOD = f"/{pb.DESCRIPTOR.services_by_name['SelectorService'].full_name}/PushWeights"


@dataclass(frozen=True)
class Delta:
    """What is sent in place of a payload.

    Attributes:
        base_version: Of the weights that it is a delta to.
        base_sha256: Of their payload.
        chunks: As of `encode_delta`.
    """

    base_version: int
    base_sha256: str
    chunks: bytes

    def header(self, whole: pb.PushWeightsHeader) -> pb.PushWeightsHeader:
        """The header of a push that sends it, from that of the whole payload."""
        header = pb.PushWeightsHeader()
        header.CopyFrom(whole)
        header.delta.base_version, header.delta.base_sha256 = self.base_version, self.base_sha256
        header.delta.num_bytes, header.delta.sha256 = len(self.chunks), content_hash(self.chunks)
        return header


def push_messages(header: pb.PushWeightsHeader, payload: bytes | memoryview) -> Iterator[bytes]:
    """The serialised PushWeightsRequests of a payload: its header, then its chunks, each copied once."""
    yield pb.PushWeightsRequest(header=header).SerializeToString()
    for chunk in chunks(payload):
        yield b"".join((_framing(len(chunk)), chunk))


@lru_cache(maxsize=2)  # all chunks but the last are equally long
def _framing(num_bytes: int) -> bytes:
    """What protobuf writes before the bytes of a chunk."""
    return pb.PushWeightsRequest(chunk=bytes(num_bytes)).SerializeToString()[:-num_bytes]
