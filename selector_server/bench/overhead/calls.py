"""A real server in a thread of this process, and a client's calls to it: reports, which check the token.

Both ends of a call are in its time; it is counted in full on either side, and so is more than it costs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selector_server.host import Host
from selector_server.listening import listen
from selector_server.server import add_service
from shared.config import ClientConfig, ServerConfig
from shared.convert import run_to_pb
from shared.dataset import Store
from shared.errors import SubbatchError
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.records import RunInfo
from shared.transport import call_metadata, open_channel

_CALL_SECONDS = 30.0


class Calls:
    """Calls about one run."""

    def __init__(self, stub: Any, metadata: Any, run: RunInfo) -> None:
        """Open the run."""
        self._stub, self._metadata = stub, metadata
        request = pb.OpenRunRequest(run=run_to_pb(run))
        incarnation = self._stub.OpenRun(
            request, timeout=_CALL_SECONDS, metadata=metadata, wait_for_ready=True
        ).incarnation
        self._report = pb.ReportProgressRequest(run=run.name, incarnation=incarnation)

    def report(self) -> None:
        """One rank's progress, to the answer."""
        self._report.completed += 1
        self._stub.ReportProgress(self._report, timeout=_CALL_SECONDS, metadata=self._metadata)


@contextmanager
def serving(folder: Path, store: Store, run: RunInfo, server: ServerConfig, client: ClientConfig) -> Iterator[Calls]:
    """A server of one run that never selects, on a free port of this machine.

    Raises:
        ConfigError: a token or TLS file that can't be used.
    """
    config = server.model_copy(update={"host": "localhost", "port": 0})
    ends = threading.Event()
    found: Future[str] = Future()

    async def serve() -> None:
        host = Host(
            store,
            run.fingerprints,
            folder,
            build=lambda info: None,  # type: ignore[arg-type,return-value]  # nothing is selected
            max_runs=1,
            rank_lease_s=server.rank_lease_s,
        )
        try:
            grpc_server, address = listen(config)
        except SubbatchError as error:
            found.set_exception(error)
            return
        add_service(grpc_server, host, config)
        await grpc_server.start()
        found.set_result(address)
        await asyncio.to_thread(ends.wait)
        await host.stop()
        await grpc_server.stop(0)
        host.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="bench-server")
    thread.start()
    try:
        with open_channel(found.result(), client.tls) as channel:
            yield Calls(selector_pb2_grpc.SelectorServiceStub(channel), call_metadata(client), run)
    finally:
        ends.set()
        thread.join()
