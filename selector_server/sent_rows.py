"""Tokenised rows for ranks that don't hold the store: each rank's share of a selection, in parts that fit a message.

Rows are read from the store when their turn comes, so a stream that isn't read holds one part, and a step that is asked
for again, after whatever broke, needs nothing but its selection.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.dataset import Store
from shared.partition import Share, deal
from shared.pb.v1 import selector_pb2 as pb
from shared.records import Row
from shared.rows_wire import encode_rows, row_bytes
from shared.wire import decode_selection

# Hundreds of streams may each hold a part, so it is well below what a message may have.
_PART_BYTES = 256 << 10
# Ranks move together: nearly always the newest step or two are asked for, by all ranks of a run.
_MOST_DEALT = 16

Part = tuple[npt.NDArray[np.int64], list[Row]]


@dataclass(frozen=True, eq=False)
class _Dealt:
    """A selection, divided among its ranks."""

    index: npt.NDArray[np.int64]
    shares: list[Share]


class RowSender:
    """Makes the messages that follow a selection; used on the server's event loop alone."""

    def __init__(self, store: Store, *, part_bytes: int = _PART_BYTES) -> None:
        """Begin.

        Args:
            store: The rows.
            part_bytes: Where a message's rows end; a row that is larger has a message of its own.
        """
        self._store, self._part_bytes = store, part_bytes
        self._dealt: OrderedDict[tuple[bytes, int], asyncio.Task[_Dealt]] = OrderedDict()

    async def messages(
        self, selection: pb.SelectionMessage, *, rank: int, world_size: int
    ) -> AsyncIterator[pb.SelectionMessage]:
        """The rows of a rank's share.

        Args:
            selection: As it was sent to the rank.
            rank: Whose share.
            world_size: Of how many ranks.

        Raises:
            DataError: a row that has been damaged on the disk.
        """
        dealt = await self._deal(selection, world_size)
        index = dealt.index[dealt.shares[rank].distinct]
        parts = self._parts(index)
        # The store is mapped: reading it may wait for a disk.
        while message := await asyncio.to_thread(_next_message, parts, selection.step):
            yield message

    def _parts(self, index: npt.NDArray[np.int64]) -> Iterator[Part]:
        start, rows, num_bytes = 0, list[Row](), 0
        for position, number in enumerate(index.tolist()):
            row = self._store.row(number)
            if rows and num_bytes + row_bytes(row) > self._part_bytes:
                yield index[start:position], rows
                start, rows, num_bytes = position, [], 0
            rows.append(row)
            num_bytes += row_bytes(row)
        yield index[start:], rows

    async def _deal(self, selection: pb.SelectionMessage, world_size: int) -> _Dealt:
        key = (selection.chain, world_size)  # no other selection has this chain
        if key not in self._dealt:
            work = asyncio.to_thread(_deal_selection, selection.arrow, world_size)
            self._dealt[key] = asyncio.create_task(work)
            if len(self._dealt) > _MOST_DEALT:
                self._dealt.popitem(last=False)
        self._dealt.move_to_end(key)
        # The end of one stream doesn't end what others wait for.
        return await asyncio.shield(self._dealt[key])


def _deal_selection(arrow: bytes, world_size: int) -> _Dealt:
    selection = decode_selection(arrow)
    return _Dealt(selection.index, deal(selection.num_tokens, world_size=world_size))


def _next_message(parts: Iterator[Part], step: int) -> pb.SelectionMessage | None:
    part = next(parts, None)
    if part is None:
        return None
    payload = encode_rows(*part)
    return pb.SelectionMessage(step=step, rows=payload, rows_crc32=zlib.crc32(payload))
