"""A push's chunks → its payload, whether they are that or say how it differs from weights that the server has.

What goes on from here is always the whole payload, with the hash that the trainer gave for it: what is stored, scored
and chained knows nothing of deltas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from selector_server.arriving import Arriving
from selector_server.run import Run
from shared.delta import apply_delta
from shared.errors import WeightsError
from shared.pb.v1 import selector_pb2 as pb
from shared.weights import content_hash

logger = logging.getLogger(__name__)


async def receive(
    run: Run, header: pb.PushWeightsHeader, requests: AsyncIterator[pb.PushWeightsRequest]
) -> bytearray | None:
    """The payload that a checked header announces; None where it must be sent whole.

    Args:
        run: Whose weights they are.
        header: Of the push; `num_bytes` is within limits.
        requests: What follows it.

    Raises:
        WireError, WeightsError: what comes isn't what the header says.
    """
    if not header.HasField("delta"):
        return await _arrived(requests, Arriving(header.version, num_bytes=header.num_bytes, sha256=header.sha256))
    delta = header.delta
    if not 0 < delta.num_bytes < header.num_bytes:
        raise WeightsError(
            f"weights version {header.version} announce a delta of {delta.num_bytes} bytes to a payload of "
            f"{header.num_bytes}: one that isn't shorter is pushed whole"
        )
    before = await asyncio.to_thread(run.delta_base, delta.base_version, delta.base_sha256)
    if before is None or len(before) != header.num_bytes:
        logger.warning(
            "run %s: weights version %d come as a delta to version %d, which isn't here: asking for the whole",
            header.run, header.version, delta.base_version,
        )  # fmt: skip
        return None
    arriving = Arriving(header.version, num_bytes=delta.num_bytes, sha256=delta.sha256)
    return await asyncio.to_thread(_rebuilt, header, before, await _arrived(requests, arriving))


async def _arrived(requests: AsyncIterator[pb.PushWeightsRequest], arriving: Arriving) -> bytearray:
    async for request in requests:
        arriving.add(request.chunk)  # empty where it is anything else
    return await arriving.whole()


def _rebuilt(header: pb.PushWeightsHeader, before: bytes, delta: bytearray) -> bytearray:
    payload = apply_delta(before, delta)
    if (found := content_hash(payload)) != header.sha256:
        raise WeightsError(
            f"weights version {header.version}, rebuilt from version {header.delta.base_version}, have hash {found}, "
            f"the trainer's {header.sha256}: it made the delta from other weights; push the whole"
        )
    return payload
