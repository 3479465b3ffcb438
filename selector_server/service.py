"""The gRPC service: proto in, proto out, errors to statuses, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from importlib.metadata import version

import grpc

from selector_server.answering import stream, unary
from selector_server.host import Host
from selector_server.hosted_run import HostedRun
from selector_server.rebuilding import receive
from shared.convert import fingerprints_to_pb, run_from_pb
from shared.errors import ConfigError, WeightsError, WireError
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.records import RunInfo
from shared.weights import ITEM_BYTES

# A run of hundreds of ranks changes hundreds of times a step; nobody reads that fast.
_SECONDS_BETWEEN_STATUSES = 0.1


class SelectorService(selector_pb2_grpc.SelectorServiceServicer):
    """Serves the runs of a host."""

    def __init__(self, host: Host, *, max_weights_bytes: int, sends_rows: bool) -> None:
        self._host, self._sends_rows = host, sends_rows
        self._max_weights_bytes = max_weights_bytes

    @unary
    async def OpenRun(self, request: pb.OpenRunRequest, context: grpc.aio.ServicerContext) -> pb.OpenRunReply:
        """Open a run."""
        incarnation, missing = await self._host.open(
            run_from_pb(request.run),
            cursor=request.cursor,
            restart=request.restart,
            open_id=request.open_id,
            checkpoint_incarnation=request.checkpoint_incarnation,
            trained=request.trained,
        )
        return pb.OpenRunReply(incarnation=incarnation, missing_versions=missing)

    @stream
    async def StreamSelections(
        self, request: pb.StreamSelectionsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SelectionMessage]:
        """Send every selection from a step on, as they become durable."""
        hosted = self._host.get(request.run)
        run, step = hosted.run, request.from_step
        if step < 0:
            raise WireError(f"run {request.run!r} has no step {step}")
        sends_rows = request.payload == pb.PAYLOAD_RECORDS
        if not sends_rows and request.payload != pb.PAYLOAD_INDICES:
            raise WireError(
                f"run {request.run!r}: payload {request.payload} is not known here: run the same subbatch release on "
                "server and trainers"
            )
        if sends_rows:
            self._require_sending_rows()
        run.require_incarnation(request.incarnation)
        with self._host.stream(hosted, request.rank):
            async for _ in self._host.watch(hosted.published):
                run.require_incarnation(request.incarnation)
                while run.has_selection(step):
                    message = await hosted.outgoing.message(step)
                    run.require_incarnation(request.incarnation)
                    with hosted.sending(step, request.rank, len(message.arrow)):
                        yield message  # goes on when the client's window has room: one message at most waits here
                    if sends_rows:
                        async for rows in self._rows(hosted, message, request):
                            yield rows
                    step += 1
                if step >= run.info.timing.num_steps:
                    return
                if run.failure:
                    raise run.failure

    async def _rows(
        self, hosted: HostedRun, selection: pb.SelectionMessage, request: pb.StreamSelectionsRequest
    ) -> AsyncIterator[pb.SelectionMessage]:
        """What follows a selection on a stream that asked for rows."""
        run = hosted.run
        run.require_incarnation(request.incarnation)
        world_size = run.info.world_size
        async for rows in self._host.rows.messages(selection, rank=request.rank, world_size=world_size):
            run.require_incarnation(request.incarnation)
            hosted.tally.rows_were_sent(len(rows.rows))
            yield rows

    @unary
    async def PushWeights(
        self, requests: AsyncIterator[pb.PushWeightsRequest], context: grpc.aio.ServicerContext
    ) -> pb.PushWeightsReply:
        """Take one version of the weights."""
        first = await anext(aiter(requests), None)
        clock = time.perf_counter()
        if first is None or first.WhichOneof("part") != "header":
            raise WireError("a push begins with its header")
        header = first.header
        hosted = self._host.get(header.run)
        run = hosted.run
        run.require_incarnation(header.incarnation)
        limit = min(self._max_weights_bytes, _payload_bound(run.info))
        if not 0 < header.num_bytes <= limit:
            raise WeightsError(
                f"weights version {header.version} announce {header.num_bytes} bytes, this run's take at most {limit}"
            )
        # A selection that is being journalled advances the run and drops weights, not at once.
        async with hosted.lock:
            is_known = run.is_known(header.version, header.sha256)
        if is_known:
            return pb.PushWeightsReply(durable_version=header.version)
        run.journal.require_room(header.num_bytes)
        payload = await receive(run, header, requests)
        if payload is None:
            return pb.PushWeightsReply(needs_whole=True)
        await self._host.push(
            header.run,
            header.incarnation,
            header.version,
            payload,
            header.sha256,
            began=clock,
            next_is_delta=header.next_is_delta,
        )
        return pb.PushWeightsReply(durable_version=header.version)

    @unary
    async def ReportProgress(
        self, request: pb.ReportProgressRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportProgressReply:
        """Note a rank's progress."""
        self._host.report(request.run, request.incarnation, rank=request.rank, completed=request.completed)
        return pb.ReportProgressReply()

    @unary
    async def ReportTrained(
        self, request: pb.ReportTrainedRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportTrainedReply:
        """Note steps that were trained without a selection."""
        await self._host.trained(request.run, request.incarnation, request.steps)
        return pb.ReportTrainedReply()

    @stream
    async def WatchRun(
        self, request: pb.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.RunStatus]:
        """Send the status of a run now and after its changes, many of them at once, or of every run once."""
        if not request.run:
            for name in self._host.names:
                yield await self._status(self._host.get(name), detail=request.detail)
            return
        hosted = self._host.get(request.run)
        async for _ in self._host.watch(hosted.changed):
            yield await self._status(hosted, detail=request.detail)
            if hosted.run.closed:
                return
            await asyncio.sleep(_SECONDS_BETWEEN_STATUSES)

    @unary
    async def DescribeStore(
        self, request: pb.DescribeStoreRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeStoreReply:
        """Say what a trainer without the store must know of it."""
        self._require_sending_rows()
        store = self._host.store
        sources = zip(store.source_names, store.source_rows, strict=True)
        return pb.DescribeStoreReply(
            dataset=store.fingerprint,
            tokenizer=store.manifest.tokenizer.fingerprint,
            max_token_id=store.manifest.max_token_id,
            sources=[pb.Source(name=name, rows=rows) for name, rows in sources],
        )

    def _require_sending_rows(self) -> None:
        if not self._sends_rows:
            raise ConfigError(
                "this server sends no rows (server.send_rows is false): give the trainers the store, and leave "
                'client.payload at "indices"'
            )

    @unary
    async def DescribeServer(
        self, request: pb.DescribeServerRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeServerReply:
        """Say which release this is, what time it has, and which data and model it serves."""
        return pb.DescribeServerReply(
            version=version("subbatch"),
            unix_ns=time.time_ns(),
            fingerprints=fingerprints_to_pb(self._host.fingerprints),
        )

    @unary
    async def CloseRun(self, request: pb.CloseRunRequest, context: grpc.aio.ServicerContext) -> pb.CloseRunReply:
        """End a run."""
        await self._host.close_run(request.run, request.incarnation)
        return pb.CloseRunReply()

    async def _status(self, hosted: HostedRun, *, detail: bool) -> pb.RunStatus:
        """How a run stands between two changes, which disk threads make under its lock."""
        async with hosted.lock:
            return self._host.status(hosted, detail=detail)


def _payload_bound(info: RunInfo) -> int:
    """The most bytes a safetensors payload of the run's tensors can have, header included."""
    total = 1 << 16
    for spec in info.trainable:
        size = ITEM_BYTES.get(spec.dtype, 8)
        for dimension in spec.shape:
            size *= dimension
        total += size + len(spec.name) + 256
    return total
