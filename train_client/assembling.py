"""What arrives on a stream of selections, put together to one step after the other.

Without rows a message is a step. With rows, a step's selection is followed by those of this rank's share, in as many
messages as they take; which rows these are follows from the selection alone, so anything else is refused.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.convert import times_from_pb
from shared.errors import WireError
from shared.partition import deal
from shared.pb.v1 import selector_pb2 as pb
from shared.records import PhaseTimes, Row, Selection
from shared.rows_wire import decode_rows
from shared.wire import decode_selection
from train_client.received import Received


class DamagedError(Exception):
    """A message isn't what the server sent."""


@dataclass(frozen=True)
class WantedRows:
    """Which rows a rank asks for beside each selection.

    Attributes:
        rank: Whose share of the selection.
        world_size: Of how many ranks.
        max_token_id: The largest token that the server's store has.
    """

    rank: int
    world_size: int
    max_token_id: int


class Assembly:
    """The steps of one run, in order, from the messages of one stream after the other."""

    def __init__(self, *, run: str, wanted: WantedRows | None) -> None:
        """Begin with nothing.

        Args:
            run: The run's name.
            wanted: The rows that come with each selection; None: none do.
        """
        self._run, self._wanted = run, wanted
        self._step: _Step | None = None

    def begin_again(self) -> None:
        """A new stream begins, with a selection."""
        self._step = None

    def add(self, message: pb.SelectionMessage, *, step: int) -> Received | None:
        """Take a message; gives the step that it makes whole.

        Args:
            message: What came.
            step: Which step is to be whole next.

        Raises:
            WireError: malformed, of another run, or not what comes next.
            DamagedError: not what was sent.
        """
        if message.step != step:
            what = f"the rows of step {step}" if self._step else f"step {step}"
            raise WireError(
                f"run {self._run!r}: expected {what}, got step {message.step}: run the same subbatch release on server "
                "and trainers"
            )
        if self._step is None:
            self._step = _Step(_selection_of(message, run=self._run, step=step), message, self._wanted)
        else:
            self._step.add(message)
        if self._step.lacks_rows:
            return None
        received, self._step = self._step.received(), None
        return received


class _Step:
    """A selection, and as many of the rows that belong to it as have come."""

    def __init__(self, selection: Selection, message: pb.SelectionMessage, wanted: WantedRows | None) -> None:
        self._selection, self._wanted = selection, wanted
        self._times: PhaseTimes = times_from_pb(message.times)
        self._num_bytes = len(message.arrow)
        self._rows: dict[int, Row] = {}
        self._positions: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if wanted:
            self._positions = deal(selection.num_tokens, world_size=wanted.world_size)[wanted.rank].distinct

    @property
    def lacks_rows(self) -> bool:
        return len(self._rows) < len(self._positions)

    def add(self, message: pb.SelectionMessage) -> None:
        assert self._wanted
        where = f"run {self._selection.run!r}: the rows of step {self._selection.step}"
        if zlib.crc32(message.rows) != message.rows_crc32:
            raise DamagedError("its rows were damaged on the way, which TLS (client.tls) would keep from happening")
        index, rows = decode_rows(message.rows, max_token_id=self._wanted.max_token_id)
        expected = self._positions[len(self._rows) :][: len(rows)]
        lengths = [len(row.input_ids) for row in rows]
        if (
            not rows
            or not np.array_equal(index, self._selection.index[expected])
            or not np.array_equal(lengths, self._selection.num_tokens[expected])
        ):
            raise WireError(f"{where} aren't those of this rank's share: got {index[:8].tolist()} …")
        self._rows.update(zip(expected.tolist(), rows, strict=True))
        self._num_bytes += len(message.rows)

    def received(self) -> Received:
        rows: Mapping[int, Row] | None = self._rows if self._wanted else None
        return Received(self._selection, self._times, self._num_bytes, time.time_ns(), rows)


def _selection_of(message: pb.SelectionMessage, *, run: str, step: int) -> Selection:
    if message.HasField("arrow_crc32") and zlib.crc32(message.arrow) != message.arrow_crc32:
        raise DamagedError("its selection was damaged on the way, which TLS (client.tls) would keep from happening")
    selection = decode_selection(message.arrow)
    if selection.run != run or selection.step != step:
        raise WireError(
            f"expected the selection of run {run!r}, step {step}, got run {selection.run!r}, step {selection.step}"
        )
    return selection
