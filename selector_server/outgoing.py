"""A run's selections as they go on the wire: one message for all its streams, read from the journal only once.

Ranks move together, so nearly always the newest few are asked for, by all. What is kept is bounded in bytes; a stream
that is further behind reads from the journal, and shares that with others at the same step.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict

from selector_server.run import Run
from shared.pb.v1 import selector_pb2 as pb

_MOST_BYTES = 4 << 20


class Outgoing:
    """The messages of one run; used on the server's event loop alone. Nobody may change a message."""

    def __init__(self, run: Run, *, most_bytes: int = _MOST_BYTES) -> None:
        """Begin with none.

        Args:
            run: Whose journal holds all selections.
            most_bytes: Of the messages that are kept; the newest is kept in any case.
        """
        self._run, self._most_bytes = run, most_bytes
        # By where in the journal the selection is, which never holds another one.
        self._kept: OrderedDict[int, pb.SelectionMessage] = OrderedDict()
        self._num_bytes = 0
        self._reading: dict[int, asyncio.Task[pb.SelectionMessage]] = {}

    def add(self, journalled: pb.SelectionMessage, *, journal_seconds: float, receive_seconds: float) -> None:
        """Keep a selection that has just become durable, with the times that only then are known."""
        message = _for_the_wire(journalled)
        message.times.journal_seconds = journal_seconds
        message.times.receive_seconds = receive_seconds
        self._keep(self._run.selection_offset(message.step), message)

    async def message(self, step: int) -> pb.SelectionMessage:
        """The message of a step that has a selection.

        Raises:
            JournalError: the journal no longer holds what it held.
        """
        offset = self._run.selection_offset(step)
        if offset in self._kept:
            self._kept.move_to_end(offset)
            return self._kept[offset]
        if offset not in self._reading:
            reading = asyncio.create_task(self._read(step, offset))
            self._reading[offset] = reading
            reading.add_done_callback(lambda _: self._reading.pop(offset))
        # The end of one stream doesn't end what others wait for.
        return await asyncio.shield(self._reading[offset])

    async def _read(self, step: int, offset: int) -> pb.SelectionMessage:
        message = _for_the_wire(await asyncio.to_thread(self._run.selection_at, step, offset))
        if offset not in self._kept:  # else it was added meanwhile, with its times
            self._keep(offset, message)
        return self._kept[offset]

    def _keep(self, offset: int, message: pb.SelectionMessage) -> None:
        replaced = self._kept.pop(offset, None)
        if replaced is not None:  # a stream was quicker to see that it is durable
            self._num_bytes -= len(replaced.arrow)
        self._kept[offset] = message
        self._num_bytes += len(message.arrow)
        while self._num_bytes > self._most_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= len(oldest.arrow)


def _for_the_wire(journalled: pb.SelectionMessage) -> pb.SelectionMessage:
    """A copy without what only the journal needs, and with what only the wire needs."""
    message = pb.SelectionMessage()
    message.CopyFrom(journalled)
    message.ClearField("history")
    message.arrow_crc32 = zlib.crc32(message.arrow)
    return message
