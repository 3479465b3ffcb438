"""The other end of `bench push`: takes payloads as a selector server does, checks their hashes, and keeps nothing.

python -m train_client.bench.push_sink        # prints its address, serves until it is ended
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from shared.errors import WeightsError, to_status
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.transport import SERVER_OPTIONS
from shared.weights import content_hash


class Sink(selector_pb2_grpc.SelectorServiceServicer):
    """Answers pushes, and nothing else."""

    async def PushWeights(  # noqa: N802 - gRPC names a method as the contract does
        self, requests: AsyncIterator[pb.PushWeightsRequest], context: grpc.aio.ServicerContext
    ) -> pb.PushWeightsReply:
        """Take one version of the weights."""
        header = (await anext(aiter(requests))).header
        payload = bytearray()
        async for request in requests:
            payload += request.chunk
        if (found := await asyncio.to_thread(content_hash, memoryview(payload))) != header.sha256:
            error = WeightsError(f"weights version {header.version} arrived with hash {found}, not {header.sha256}")
            await context.abort(*to_status(error))
        return pb.PushWeightsReply(durable_version=header.version)


async def _serve() -> None:
    server: Any = grpc.aio.server(options=SERVER_OPTIONS)
    selector_pb2_grpc.add_SelectorServiceServicer_to_server(Sink(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)  # noqa: T201 - read by the benchmark
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
