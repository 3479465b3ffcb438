"""A TCP relay on loopback that can do to a connection what networks do: delay, silence, cuts, wrong bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Literal

Direction = Literal["up", "down"]


class Network:
    """Relays `address` for the length of a `with` block; connect to `self.address` instead.

    The faults may be called from any thread.
    """

    def __init__(self, address: str) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._delay_s = 0.0
        self._corrupting = 0
        self._corrupted: tuple[Direction, ...] = ()
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""

    def slow(self, delay_s: float) -> None:
        """Hold every piece of data back for so long from now on."""
        self._delay_s = delay_s

    def silence(self, directions: tuple[Direction, ...] = ("up", "down")) -> None:
        """Deliver nothing from now on, and break nothing; what is sent meanwhile is late, not lost."""
        self._run(self._set_open(directions, False))

    def heal(self) -> None:
        """Deliver everything again, at full speed."""
        self._delay_s = 0.0
        self._run(self._set_open(("up", "down"), True))

    def cut(self) -> None:
        """Reset every connection."""
        self._run(self._abort())

    def corrupt(self, pieces: int, directions: tuple[Direction, ...] = ("up", "down")) -> None:
        """Flip a bit in each of the next pieces of data that go in these directions."""
        self._corrupted, self._corrupting = directions, pieces

    @property
    def is_corrupting(self) -> bool:
        """Whether pieces that were asked for are still to come."""
        return self._corrupting > 0

    def __enter__(self) -> Network:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set_open(self, directions: tuple[Direction, ...], is_open: bool) -> None:
        for direction in directions:
            (self._open[direction].set if is_open else self._open[direction].clear)()

    async def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._open = {direction: asyncio.Event() for direction in ("up", "down")}
        for event in self._open.values():
            event.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._relay, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self._loop.run_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:  # no server there now
            writer.transport.abort()
            return
        pair = {writer, up_writer}
        self._writers |= pair
        await asyncio.gather(self._pump(reader, up_writer, "up"), self._pump(up_reader, writer, "down"))
        self._writers -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._open[direction].wait()
                if self._corrupting and direction in self._corrupted:
                    self._corrupting -= 1
                    middle = len(data) // 2
                    data = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()
