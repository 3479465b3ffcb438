"""One message for all streams of a run: read once, bounded, and never another selection's."""

from __future__ import annotations

import asyncio
import threading

import pytest

from selector_server.changes import Signal
from selector_server.outgoing import Outgoing
from shared.errors import JournalError
from shared.pb.v1 import selector_pb2 as pb


class Journalled:
    """A run's selections, one every hundred bytes of its journal, and how often each was read."""

    def __init__(self) -> None:
        self.offsets = {step: 100 * step for step in range(20)}
        self.reads: list[int] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_damaged = False

    def selection_offset(self, step: int) -> int:
        return self.offsets[step]

    def selection_at(self, step: int, offset: int) -> pb.SelectionMessage:
        assert self.may_read.wait(30)
        self.reads.append(step)
        if self.is_damaged:
            raise JournalError("damaged")
        return selection(step, offset)


def selection(step: int, offset: int) -> pb.SelectionMessage:
    return pb.SelectionMessage(step=step, arrow=b"%100d" % offset, history=b"of the journal alone")


def test_streams_at_one_step_share_one_read_which_the_end_of_one_of_them_leaves_alone() -> None:
    async def scenario() -> None:
        run = Journalled()
        run.may_read.clear()
        outgoing = Outgoing(run)  # type: ignore[arg-type]
        streams = [asyncio.create_task(outgoing.message(3)) for _ in range(50)]
        await asyncio.sleep(0)
        streams[0].cancel()
        run.may_read.set()
        messages = await asyncio.gather(*streams[1:])
        assert all(message is messages[0] for message in messages)
        assert (messages[0].step, messages[0].history, run.reads) == (3, b"", [3])
        assert await outgoing.message(3) is messages[0]

    asyncio.run(scenario())


def test_what_has_just_become_durable_is_not_read_at_all_and_carries_its_times() -> None:
    async def scenario() -> None:
        run = Journalled()
        outgoing = Outgoing(run)  # type: ignore[arg-type]
        journalled = selection(7, 700)
        outgoing.add(journalled, journal_seconds=0.25, receive_seconds=0.5)
        message = await outgoing.message(7)
        assert (message.times.journal_seconds, message.times.receive_seconds, run.reads) == (0.25, 0.5, [])
        assert journalled == selection(7, 700)

        run.offsets[7] = 5000  # a rewind set it aside, and step 7 was selected anew
        assert (await outgoing.message(7)).arrow == selection(7, 5000).arrow

    asyncio.run(scenario())


def test_messages_that_are_kept_are_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    async def scenario() -> None:
        run = Journalled()
        outgoing = Outgoing(run, most_bytes=350)  # type: ignore[arg-type]
        for step in (0, 1, 2, 0, 3):
            await outgoing.message(step)
        assert run.reads == [0, 1, 2, 3]
        await outgoing.message(0)  # asked for since
        assert run.reads == [0, 1, 2, 3]
        await outgoing.message(1)
        assert run.reads == [0, 1, 2, 3, 1]

    asyncio.run(scenario())


def test_a_stream_that_sees_a_selection_before_it_is_added_changes_neither_its_times_nor_the_bound() -> None:
    async def scenario() -> None:
        run = Journalled()
        outgoing = Outgoing(run, most_bytes=250)  # type: ignore[arg-type]
        for step in range(10):
            run.may_read.clear()
            early = asyncio.create_task(outgoing.message(step))
            await asyncio.sleep(0)
            if step % 2:  # what is added comes last, or first
                run.may_read.set()
                await early
            outgoing.add(selection(step, 100 * step), journal_seconds=0.25, receive_seconds=0.0)
            run.may_read.set()
            await early
            assert (await outgoing.message(step)).times.journal_seconds == 0.25
        run.reads.clear()
        await outgoing.message(8)
        assert run.reads == []

    asyncio.run(scenario())


def test_a_read_that_failed_is_tried_again_by_the_next_stream() -> None:
    async def scenario() -> None:
        run = Journalled()
        run.is_damaged = True
        outgoing = Outgoing(run)  # type: ignore[arg-type]
        with pytest.raises(JournalError):
            await outgoing.message(1)
        run.is_damaged = False
        await asyncio.sleep(0)
        assert (await outgoing.message(1)).step == 1

    asyncio.run(scenario())


def test_a_signal_wakes_all_who_wait_once_however_often_it_fires() -> None:
    async def scenario() -> None:
        signal, woken = Signal(), []

        async def listen(name: int) -> None:
            seen = signal.count
            while seen < 9:
                await signal.past(seen)
                seen = signal.count
                woken.append((name, seen))

        listeners = [asyncio.create_task(listen(name)) for name in range(3)]
        await asyncio.sleep(0)
        for _ in range(4):
            signal.fire()
        await asyncio.sleep(0)
        assert sorted(woken) == [(0, 4), (1, 4), (2, 4)]
        for _ in range(5):
            signal.fire()
        await asyncio.gather(*listeners)
        assert sorted(woken)[1::2] == [(0, 9), (1, 9), (2, 9)]

    asyncio.run(scenario())
