"""All ranks of a measurement, in one process: `python -m selector_server.bench.subscribers.clients ADDRESS ORDER OUT`.

Each has a connection, a stream and a report of its own, and takes what comes only if it is the next step. When every
rank has everything, `OUT` holds when each selection arrived, unix ns, int64 [ranks, steps], and what is printed are a
hash of each rank's selections, in the order in which they came, and what all connections have received.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
from pathlib import Path
from time import time_ns

import grpc
import numpy as np
import numpy.typing as npt

from selector_server.bench.subscribers.order import RUN, VOCABULARY, Order
from shared.convert import run_to_pb
from shared.errors import WireError
from shared.partition import deal
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.rows_wire import decode_rows
from shared.transport import CLIENT_OPTIONS
from shared.wire import decode_selection

# Else all channels to one address would share a connection.
_OPTIONS = [*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
# Of Linux's `struct tcp_info`.
_TCP_INFO_BYTES, _BYTES_RECEIVED_AT = 256, 128


class Subscriber:
    """One rank."""

    def __init__(self, order: Order, address: str, rank: int, arrived: npt.NDArray[np.int64]) -> None:
        """Prepare a connection; `arrived` [steps] takes the times."""
        self._order, self._rank, self._arrived = order, rank, arrived
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = selector_pb2_grpc.SelectorServiceStub(self._channel)
        self._stream = self._stub.StreamSelections(
            pb.StreamSelectionsRequest(
                run=RUN,
                incarnation=1,
                rank=rank,
                from_step=0,
                payload=pb.PAYLOAD_RECORDS if order.records else pb.PAYLOAD_INDICES,
            ),
            wait_for_ready=True,
        )
        self._hash = hashlib.sha256()
        self._completed = self._reported = self._lacking = 0
        self._moved = asyncio.Event()

    async def subscribed(self) -> None:
        """The server has begun to answer."""
        await self._stream.initial_metadata()

    async def run(self) -> str:
        """Receive every selection, and report it as trained; the hash of all.

        Raises:
            WireError: a selection was lost, repeated or out of order.
        """
        reporting = asyncio.create_task(self._report()) if self._order.reports else None
        async for message in self._stream:
            step = self._completed
            self._arrived[step] = time_ns()
            if message.step != step:
                raise WireError(f"rank {self._rank} got step {message.step} where {step} was next")
            self._hash.update(message.arrow)
            if not self._is_whole(message):
                continue
            self._completed += 1
            self._moved.set()
        if self._completed != self._order.steps:
            raise WireError(f"rank {self._rank} got {self._completed} of {self._order.steps} selections")
        if reporting:
            await reporting
        return self._hash.hexdigest()

    def _is_whole(self, message: pb.SelectionMessage) -> bool:
        """Whether a message is the last of its step."""
        if not self._order.records:
            return True
        if message.arrow:
            num_tokens = decode_selection(message.arrow).num_tokens
            self._lacking = len(deal(num_tokens, world_size=self._order.ranks)[self._rank].distinct)
        else:
            index, _ = decode_rows(message.rows, max_token_id=VOCABULARY - 1)
            self._lacking -= len(index)
        return self._lacking == 0

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    async def hold_nobody_back(self) -> None:
        """Report every step as trained, though nothing is read."""
        await self._tell(self._order.steps)

    async def _report(self) -> None:
        """Tell the server the newest progress, as often as it has taken the one before."""
        while self._reported < self._order.steps:
            await self._moved.wait()
            self._moved.clear()
            if self._reported != self._completed:
                await self._tell(self._completed)

    async def _tell(self, completed: int) -> None:
        self._reported = completed
        await self._stub.ReportProgress(
            pb.ReportProgressRequest(run=RUN, incarnation=1, rank=self._rank, completed=completed)
        )


async def receive(order: Order, address: str) -> tuple[list[str], npt.NDArray[np.int64], int | None]:
    """Open the run and receive all of it on every rank: hashes, times of arrival [ranks, steps], and bytes."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        await stub.OpenRun(pb.OpenRunRequest(run=run_to_pb(order.info), open_id="bench"), wait_for_ready=True)
    arrived = np.zeros((order.ranks, order.steps), dtype=np.int64)
    ranks = [Subscriber(order, address, rank, arrived[rank]) for rank in range(order.ranks)]
    idle, reading = ranks[: order.idle], ranks[order.idle :]
    await asyncio.gather(*(rank.subscribed() for rank in idle))
    if order.reports:
        await asyncio.gather(*(rank.hold_nobody_back() for rank in idle))
    hashes = await asyncio.gather(*(rank.run() for rank in reading))
    hashes = [*await asyncio.gather(*(rank.run() for rank in idle)), *hashes]
    received = received_bytes(int(address.rpartition(":")[2]))
    await asyncio.gather(*(rank.close() for rank in ranks))
    return hashes, arrived, received


def received_bytes(port: int) -> int | None:
    """What this process has received on all connections to a port, as TCP's payload; None where nobody counts it."""
    if not sys.platform.startswith("linux"):
        return None
    received = 0
    for number in map(int, os.listdir("/proc/self/fd")):
        # What isn't a connected socket, or is closed already by now, is none of those.
        with contextlib.suppress(OSError), socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as connection:
            domain = connection.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
            if domain in (socket.AF_INET, socket.AF_INET6) and connection.getpeername()[1] == port:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                received += struct.unpack_from("Q", info, _BYTES_RECEIVED_AT)[0]
    return received


def main() -> None:
    """Receive, and say what came when."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("order", type=Order.from_json)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    hashes, arrived, received = asyncio.run(receive(arguments.order, arguments.address))
    np.save(arguments.out, arrived)
    print(json.dumps({"hashes": hashes, "received_bytes": received}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
