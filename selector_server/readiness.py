"""Whether a server that is alive can serve trainers, by the standard health service.

Asked without a name, health says SERVING as long as the process answers: liveness. Asked for the service by its full
name it says SERVING when models and runs are loaded and the journal can be written, and NOT_SERVING otherwise, also
while the server stops: readiness.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from grpc_health.v1 import health, health_pb2

from shared.pb.v1 import selector_pb2

logger = logging.getLogger(__name__)

SERVICE = selector_pb2.DESCRIPTOR.services_by_name["SelectorService"].full_name
_FILE = "probe"
_PROBE_BYTES = 4096
_EVERY_S = 10.0


class Readiness:
    """Tells health what it finds of one journal folder.

    Attributes:
        servicer: What answers for it.
        why_not: Why the server isn't ready, in words; empty where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.servicer: Any = health.aio.HealthServicer()
        self.why_not = "the server is loading"
        self._folder = folder

    async def begin(self) -> None:
        """Everything is loaded: look at the journal for the first time."""
        await self.servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await self.look()

    async def look(self) -> None:
        """Look whether the journal can be written, and say so."""
        why_not = await asyncio.to_thread(why_not_writable, self._folder)
        if why_not and not self.why_not:
            logger.error("not ready: %s", why_not)
        elif not why_not:
            logger.log(logging.INFO if self.why_not else logging.DEBUG, "ready")
        await self._say(why_not)

    async def keep_looking(self) -> None:
        """Look every so often, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.look()

    async def end(self) -> None:
        """The server stops: it takes nobody new."""
        await self._say("the server is stopping")

    async def _say(self, why_not: str) -> None:
        self.why_not = why_not
        states = health_pb2.HealthCheckResponse
        await self.servicer.set(SERVICE, states.NOT_SERVING if why_not else states.SERVING)


def why_not_writable(folder: Path) -> str:
    """Write a little to a file in a folder, durably: why that failed, in words; empty where it didn't."""
    try:
        descriptor = os.open(folder / _FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, bytes(_PROBE_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(folder).free} bytes free"
        return f"journal folder {folder} can't be written: {error.strerror}{free}"
    return ""
