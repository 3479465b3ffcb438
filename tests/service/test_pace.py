"""Who holds whom back, and for how long: real streams of several ranks of a run that picks rows at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from selector_server.live.ask import ask
from selector_server.live.status import status_table
from shared.config import ClientConfig
from shared.convert import run_to_pb
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from tests.service.harness import Job, LiveServer
from tests.support import World

STEPS = 12
TIMEOUT = 60.0


class Ranks:
    """The calls of all ranks of one run, by hand."""

    def __init__(self, server: LiveServer, world: World, count: int) -> None:
        job = Job(world, server.fingerprints)
        info = job.info(num_steps=STEPS, pick="random")
        timing = dataclasses.replace(info.timing, scores=False)
        self.info = dataclasses.replace(info, world_size=count, timing=timing)
        self._channel = grpc.insecure_channel(server.address)
        self.stub = selector_pb2_grpc.SelectorServiceStub(self._channel)

    def open(self) -> None:
        self.stub.OpenRun(pb.OpenRunRequest(run=run_to_pb(self.info), open_id="job"), timeout=TIMEOUT)

    def stream(self, rank: int, step: int = 0, **changes: int) -> Any:
        request = {"run": "run", "incarnation": 1, "rank": rank, "from_step": step, **changes}
        return self.stub.StreamSelections(pb.StreamSelectionsRequest(**request), timeout=TIMEOUT, wait_for_ready=True)

    def report(self, rank: int, completed: int) -> None:
        request = pb.ReportProgressRequest(run="run", incarnation=1, rank=rank, completed=completed)
        self.stub.ReportProgress(request, timeout=TIMEOUT)

    def wait_until(self, holds: Callable[[pb.RunStatus], bool]) -> pb.RunStatus:
        watching = self.stub.WatchRun(pb.WatchRunRequest(run="run"), timeout=TIMEOUT)
        status = next(status for status in watching if holds(status))
        watching.cancel()
        return status

    def close(self) -> None:
        self._channel.close()


def take(stream: Any, count: int) -> list[bytes]:
    return [next(stream).arrow for _ in range(count)]


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal", rank_lease_s=0.4) as live:
        yield live


def test_a_rank_that_goes_away_holds_others_back_for_its_lease_and_gets_every_step_when_it_is_back(
    world: World, server: LiveServer
) -> None:
    ranks = Ranks(server, world, 3)
    ranks.open()
    streams = [ranks.stream(rank) for rank in range(3)]
    received = take(streams[0], 2)
    assert take(streams[1], 1) + take(streams[2], 1) == [received[0]] * 2
    ranks.report(0, 3)

    # A lease has run out, and rank 1 has been as silent all that time; but its stream is open.
    streams[2].cancel()
    status = ranks.wait_until(lambda status: list(status.gone_ranks) == [2])
    assert status.silent_seconds.keys() == {2}
    assert status.silent_seconds[2] >= 0.4
    assert (status.next_step, status.waits_for) == (2, "rank 1, which has completed 0 steps")
    table = status_table(server.address, ask(ClientConfig(selector=server.address)))
    assert "rank 2 gone for" in str(list(table.columns[table_column(table, "ranks")].cells))

    streams[1].cancel()
    received += take(streams[0], 3)
    status = ranks.wait_until(lambda status: status.next_step == 5)
    assert list(status.gone_ranks) == [1, 2]
    assert status.waits_for == "rank 0, which has completed 3 steps"

    ranks.report(0, STEPS)
    received += take(streams[0], STEPS - 5)
    streams[1], streams[2] = ranks.stream(1, 1), ranks.stream(2)
    assert [message.arrow for message in streams[1]] == received[1:]
    assert [message.arrow for message in streams[2]] == received
    ranks.close()


def test_a_rank_that_is_back_holds_others_back_from_where_it_was(world: World, server: LiveServer) -> None:
    ranks = Ranks(server, world, 2)
    ranks.open()
    first, second = ranks.stream(0), ranks.stream(1)
    take(second, 2)
    second.cancel()
    ranks.report(0, 2)
    take(first, 4)
    second = ranks.stream(1, 2)
    assert next(second).step == 2
    ranks.report(0, 6)
    status = ranks.wait_until(lambda status: status.completed[0] == 6)
    assert (status.next_step, status.waits_for) == (4, "rank 1, which has completed 0 steps")
    assert not status.gone_ranks
    ranks.report(1, 6)
    assert [next(first).step for _ in range(4)] == [4, 5, 6, 7]
    ranks.close()


def test_nothing_is_worked_ahead_for_a_job_that_is_wholly_away_and_a_restart_gives_every_rank_a_new_lease(
    world: World, server: LiveServer
) -> None:
    ranks = Ranks(server, world, 2)
    ranks.open()
    ranks.report(0, 5)
    ranks.report(1, 0)  # whose lease ends last
    status = ranks.wait_until(lambda status: len(status.gone_ranks) == 2)
    assert (status.next_step, status.waits_for) == (2, "rank 1, which has completed 0 steps")

    server.stop()
    server._rank_lease_s = 3600.0
    server.start()
    stream = ranks.stream(0)
    take(stream, 2)
    ranks.report(0, 5)  # which a client repeats to a server that has forgotten it
    status = ranks.wait_until(lambda status: status.completed[0] == 5)
    assert (status.next_step, list(status.gone_ranks)) == (2, [])
    assert status.silent_seconds.keys() == {1}
    ranks.report(1, 5)
    assert take(stream, 5)
    ranks.close()


def test_a_stream_of_a_rank_that_the_run_does_not_have_is_refused(world: World, server: LiveServer) -> None:
    ranks = Ranks(server, world, 2)
    ranks.open()
    with pytest.raises(grpc.RpcError, match=r"ranks 0 to 1, got rank 2") as refused:
        next(ranks.stream(2))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    ranks.close()


def table_column(table: Any, header: str) -> int:
    return [column.header for column in table.columns].index(header)
