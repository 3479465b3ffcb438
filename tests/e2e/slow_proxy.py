"""A TCP relay on loopback that holds every piece of data back for a while, random or always the same."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading


class SlowProxy:
    """Relays `address` for the length of a `with` block; connect to `self.address` instead."""

    def __init__(self, address: str, *, seed: int, least_s: float = 0.0, most_s: float = 0.03) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port, self._random, self._seconds = int(port), random.Random(seed), (least_s, most_s)
        self.address, self.connections = "", 0

    def __enter__(self) -> SlowProxy:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._relay, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self._loop.run_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(self._random.uniform(*self._seconds))
                writer.write(data)
                await writer.drain()
        writer.close()
