"""What stands before the service: whose run a call is about, and whether it stays within the limits.

Every method of the contract is here. One that isn't answers UNIMPLEMENTED: what nobody has thought about stays shut.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from selector_server.answering import stream, unary
from selector_server.host import Host
from selector_server.security.admission import admit
from selector_server.security.caller import current_caller
from selector_server.security.traffic import Traffic, steady
from selector_server.service import SelectorService
from shared.errors import LimitError, NotOwnerError, RunNotFoundError
from shared.limits_config import LimitsConfig
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc


class GuardedService(selector_pb2_grpc.SelectorServiceServicer):
    """Lets through to a service what its caller may do, as much of it as the server takes."""

    def __init__(self, service: SelectorService, host: Host, limits: LimitsConfig) -> None:
        # Any: gRPC ships no types, so what its methods return has none.
        self._service: Any = service
        self._host, self._limits = host, limits
        self._traffic = Traffic(limits)

    @unary
    async def OpenRun(self, request: pb.OpenRunRequest, context: grpc.aio.ServicerContext) -> pb.OpenRunReply:
        """Open a run, which from then on is its caller's."""
        with self._traffic.call():
            admit(request, self._limits)
            name, owner = request.run.name, self._owner(request.run.name)
            if owner is None:
                self._require_place()
            else:
                self._require_mine(name)
            request.run.owner = owner or current_caller().name
            reply: pb.OpenRunReply = await self._service.OpenRun(request, context)
            return reply

    @stream
    async def StreamSelections(
        self, request: pb.StreamSelectionsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SelectionMessage]:
        """Send the selections of a run."""
        self._require_mine(request.run)
        with self._traffic.call(), self._traffic.stream(request.run):
            async with aclosing(self._service.StreamSelections(request, context)) as messages:
                async for message in messages:
                    yield message

    @unary
    async def PushWeights(
        self, requests: AsyncIterator[pb.PushWeightsRequest], context: grpc.aio.ServicerContext
    ) -> pb.PushWeightsReply:
        """Take weights, as long as they keep coming."""
        with self._traffic.call():
            async with aclosing(self._arriving(requests)) as arriving:
                reply: pb.PushWeightsReply = await self._service.PushWeights(arriving, context)
                return reply

    async def _arriving(
        self, requests: AsyncIterator[pb.PushWeightsRequest]
    ) -> AsyncGenerator[pb.PushWeightsRequest, None]:
        async with aclosing(steady(requests, self._limits, num_bytes=0)) as first:
            request = await anext(first, None)
        if request is None:
            return
        header = request.header
        self._require_mine(header.run)
        with self._traffic.push(header.run), self._traffic.held() as held:
            num_bytes = max(header.num_bytes, 0)
            if header.HasField("delta"):
                held.add(num_bytes)  # what a few chunks are rebuilt to
            yield request
            async with aclosing(steady(requests, self._limits, num_bytes=num_bytes)) as others:
                async for request in others:
                    held.add(len(request.chunk))
                    yield request

    @unary
    async def ReportProgress(
        self, request: pb.ReportProgressRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportProgressReply:
        """Note a rank's progress."""
        self._require_mine(request.run)
        with self._traffic.call():
            reply: pb.ReportProgressReply = await self._service.ReportProgress(request, context)
            return reply

    @unary
    async def ReportTrained(
        self, request: pb.ReportTrainedRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportTrainedReply:
        """Note steps that were trained without a selection."""
        self._require_mine(request.run)
        with self._traffic.call():
            reply: pb.ReportTrainedReply = await self._service.ReportTrained(request, context)
            return reply

    @stream
    async def WatchRun(
        self, request: pb.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.RunStatus]:
        """Send the status of a run, or of every run of the caller's."""
        if request.run:
            self._require_mine(request.run)
        with self._traffic.call(), self._traffic.stream(request.run):
            async with aclosing(self._service.WatchRun(request, context)) as statuses:
                async for status in statuses:
                    if self._is_mine(status.run):
                        yield status

    @unary
    async def DescribeStore(
        self, request: pb.DescribeStoreRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeStoreReply:
        """Say what the store is, to whoever may open a run on it."""
        with self._traffic.call():
            reply: pb.DescribeStoreReply = await self._service.DescribeStore(request, context)
            return reply

    @unary
    async def DescribeServer(
        self, request: pb.DescribeServerRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeServerReply:
        """Say what is served, to whoever has a token."""
        with self._traffic.call():
            reply: pb.DescribeServerReply = await self._service.DescribeServer(request, context)
            return reply

    @unary
    async def CloseRun(self, request: pb.CloseRunRequest, context: grpc.aio.ServicerContext) -> pb.CloseRunReply:
        """End a run."""
        self._require_mine(request.run)
        with self._traffic.call():
            reply: pb.CloseRunReply = await self._service.CloseRun(request, context)
            return reply

    def _owner(self, run: str) -> str | None:
        """Whose a run is, empty where nobody's; None where there is no such run, or it is only being opened."""
        hosted = self._host.find(run)
        return hosted.run.info.owner if hosted and hosted.run.incarnation else None

    def _is_mine(self, run: str) -> bool:
        owner = self._owner(run)
        return owner is not None and current_caller().may_touch(owner)

    def _require_mine(self, run: str) -> None:
        if self._owner(run) is None:
            known = ", ".join(name for name in self._host.names if self._is_mine(name)) or "none"
            raise RunNotFoundError(f"run {run[:128]!r} is not known here (your runs: {known}): open it first")
        if not self._is_mine(run):
            raise NotOwnerError(
                f"run {run!r} belongs to another token than {current_caller().name!r}'s: choose another run.name, or "
                "set client.token_file to its owner's"
            )

    def _require_place(self) -> None:
        if len(self._host.names) >= self._limits.stored_runs:
            raise LimitError(
                f"the server keeps {len(self._host.names)} runs, server.limits.stored_runs is "
                f"{self._limits.stored_runs}: move folders of runs that have ended out of server.journal and start the "
                "server again, or raise the limit"
            )
