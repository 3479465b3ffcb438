"""What one step of a run costs a server and a trainer besides selecting and training: each operation, to be timed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selector_server.arriving import Arriving
from selector_server.engine import Selected
from selector_server.journal import Journal
from selector_server.journal.chain import chain_link
from shared.convert import times_to_pb
from shared.pb.v1 import journal_pb2, selector_pb2
from shared.records import TensorSpec
from shared.weights import chunks, content_hash, decode_weights
from shared.wire import decode_selection, encode_selection


@dataclass(frozen=True)
class Operation:
    """One thing that a step needs.

    Attributes:
        side: `server`, or `trainer`, of whose ranks it is the busiest, rank 0.
        name: In words.
        kind: `selection`, whose way to the ranks it is in; `weights`, whose way to the scorer it is in; or `beside`.
        per_step: How often a step needs it.
        do: Does it once.
    """

    side: str
    name: str
    kind: str
    per_step: float
    do: Callable[[], object]


class DurableStep:
    """Selections and weights of one run, made durable as its server does it."""

    def __init__(self, folder: Path, selected: Selected, payload: bytes, specs: tuple[TensorSpec, ...]) -> None:
        """Take what a step selected and what its trainer pushes; `folder` is the journal's."""
        assert selected.kept is not None
        self._journal = Journal(folder)
        self._kept, self._payload, self._specs = selected.kept, bytearray(payload), specs
        self._loop = asyncio.new_event_loop()
        self._scores = selected.kept.to_bytes()
        self._sha256 = content_hash(payload)
        self._version = 0
        self._message = selector_pb2.SelectionMessage(
            arrow=encode_selection(selected.selection),
            times=times_to_pb(selected.times),
            history=selected.history,
            weights_sha256=self._sha256,
            scores_sha256=hashlib.sha256(self._scores).digest(),
            chain=bytes(32),
        )
        stored = journal_pb2.WeightsStored(sha256=self._sha256, num_bytes=len(payload))
        self._selection_record = journal_pb2.JournalRecord(selection=self._message)
        self._stored_record = journal_pb2.JournalRecord(weights=stored)

    @property
    def record_bytes(self) -> int:
        """What a step adds to the journal."""
        return self._selection_record.ByteSize() + self._stored_record.ByteSize() + len(self._scores)

    def operations(self) -> list[Operation]:
        """In the order in which a step does them."""
        return [
            Operation("trainer", "weights: hashed", "weights", 1, lambda: content_hash(self._payload)),
            Operation("server", "weights: put together, hashed", "weights", 1, self._receive),
            Operation("server", "weights: names, shapes, dtypes, finite", "weights", 1, self._check),
            Operation("server", "weights: written, synced, renamed", "weights", 1, self._write),
            Operation("server", "weights: journalled, synced", "weights", 1, self._record_weights),
            Operation("server", "scores: to bytes", "selection", 1, self._kept.to_bytes),
            Operation("server", "scores and selection: hashed", "selection", 1, self._hash),
            Operation("server", "selection: journalled, synced", "selection", 1, self._record_selection),
            Operation("trainer", "selection: every field checked", "selection", 1, self._decode),
            Operation("server", "weights before: removed", "beside", 1, self._remove),
        ]

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _receive(self) -> object:
        async def receive() -> bytearray:
            arriving = Arriving(0, num_bytes=len(self._payload), sha256=self._sha256)
            for chunk in chunks(self._payload):
                arriving.add(chunk)
                await asyncio.sleep(0)
            return await arriving.whole()

        return self._loop.run_until_complete(receive())

    def _check(self) -> object:
        return decode_weights(self._payload, self._specs)

    def _write(self) -> None:
        self._version += 1
        self._journal.write_weights(self._version, self._sha256, self._payload)

    def _record_weights(self) -> int:
        return self._journal.append(self._stored_record)

    def _remove(self) -> None:
        self._journal.keep_weights({self._version: self._sha256})

    def _hash(self) -> bytes:
        hashlib.sha256(self._scores).digest()
        return chain_link(bytes(32), self._message)

    def _record_selection(self) -> int:
        return self._journal.append(self._selection_record, self._scores)

    def _decode(self) -> object:
        return decode_selection(self._message.arrow)
