"""Rows that a server sends beside its selections: each rank's share and no more, whole, the same again after faults."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from selector_server.sent_rows import RowSender
from shared.config import ClientConfig, Config
from shared.errors import ConfigError, UnavailableError, WireError, from_rpc_error
from shared.partition import partition
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.records import Row, RunInfo
from shared.rows_wire import decode_rows
from shared.wire import decode_selection
from tests.service.harness import Job, LiveServer
from tests.support import World
from train_client.assembling import Assembly, WantedRows
from train_client.client import SelectorClient
from train_client.ranks import Ranks
from train_client.received import Received
from train_client.training_data import training_data

WORLD_SIZE, NUM_STEPS = 3, 4


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as live:
        yield live


def a_run(world: World, server: LiveServer, name: str = "run") -> RunInfo:
    """Of three ranks, over which its seven rows don't divide, with all selections made at once."""
    info = Job(world, server.fingerprints).info(
        name, num_steps=NUM_STEPS, large_batch_size=14, sub_batch_size=7, pick="random"
    )
    return dataclasses.replace(
        info, world_size=WORLD_SIZE, timing=dataclasses.replace(info.timing, lookahead=NUM_STEPS, scores=False)
    )


def connect(server: LiveServer, rank: int, run: str = "run") -> SelectorClient:
    wanted = WantedRows(rank, WORLD_SIZE, server.store.manifest.max_token_id)
    return SelectorClient(ClientConfig(selector=server.address), run=run, rank=rank, wanted=wanted)


def opened(server: LiveServer, info: RunInfo) -> int:
    client = SelectorClient(ClientConfig(selector=server.address), run=info.name, rank=0)
    incarnation, missing = client.open_run(info, cursor=0, restart=False)
    assert not missing
    client.close()
    return incarnation


def received(server: LiveServer, incarnation: int, rank: int, *, from_step: int = 0) -> list[Received]:
    client = connect(server, rank)
    client.attach(incarnation, from_step=from_step, num_steps=NUM_STEPS)
    try:
        return [client.selection(step) for step in range(from_step, NUM_STEPS)]
    finally:
        client.close()


def content(steps: list[Received]) -> str:
    """A hash of all that was received."""
    digest = hashlib.sha256()
    for step in steps:
        assert step.rows
        for position, row in step.rows.items():
            digest.update(f"{step.selection.step} {position} {row.input_ids.tolist()} {row.num_prompt_tokens}".encode())
        digest.update(step.selection.index.tobytes())
    return digest.hexdigest()


def assert_row(row: Row, truth: Row) -> None:
    for field in dataclasses.fields(Row):
        np.testing.assert_array_equal(getattr(row, field.name), getattr(truth, field.name))


@pytest.mark.parametrize("part_bytes", [1, 1000, 1 << 20])
def test_each_rank_is_sent_the_rows_of_its_share_and_no_others(
    world: World, server: LiveServer, part_bytes: int
) -> None:
    server.host.rows = RowSender(server.store, part_bytes=part_bytes)
    incarnation = opened(server, a_run(world, server))
    most_tokens = server.store.manifest.max_token_id
    trained: dict[int, list[int]] = {step: [] for step in range(NUM_STEPS)}
    for rank in range(WORLD_SIZE):
        sent: dict[int, list[int]] = {}
        with grpc.insecure_channel(server.address) as channel:
            stub = selector_pb2_grpc.SelectorServiceStub(channel)
            for message in stub.StreamSelections(
                pb.StreamSelectionsRequest(
                    run="run", incarnation=incarnation, rank=rank, from_step=0, payload=pb.PAYLOAD_RECORDS
                ),
                timeout=60,
            ):
                if message.arrow:
                    selection = decode_selection(message.arrow)
                    sent[message.step] = []
                    continue
                index, rows = decode_rows(message.rows, max_token_id=most_tokens)
                sent[message.step] += index.tolist()
                assert len(rows) == 1 or len(message.rows) < part_bytes + 2000
        for step in received(server, incarnation, rank):
            selection = step.selection
            mine = partition(selection.num_tokens, world_size=WORLD_SIZE, micro_batch_size=2)[rank]
            needed = {int(p) for batch in mine for p in batch.position}
            assert step.rows
            assert set(step.rows) == needed
            assert sorted(sent[selection.step]) == sorted(selection.index[list(needed)].tolist())
            for position, row in step.rows.items():
                assert_row(row, server.store.row(int(selection.index[position])))
            trained[selection.step] += [int(p) for b in mine for p in b.position[~b.is_filler]]
    assert all(sorted(positions) == list(range(7)) for positions in trained.values())


def test_a_stream_without_rows_gets_none(world: World, server: LiveServer) -> None:
    incarnation = opened(server, a_run(world, server))
    client = SelectorClient(ClientConfig(selector=server.address), run="run", rank=1)
    client.attach(incarnation, from_step=0, num_steps=NUM_STEPS)
    assert [client.selection(step).rows for step in range(NUM_STEPS)] == [None] * NUM_STEPS
    client.close()


@pytest.mark.parametrize("fault", ["a stream that ends within a step", "damaged bytes", "a server that starts again"])
def test_a_fault_between_the_rows_of_a_step_changes_nothing(
    world: World, server: LiveServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    incarnation = opened(server, a_run(world, server))
    undisturbed = received(server, incarnation, 1)
    send = RowSender.messages
    faults: list[int] = []

    async def disturbed(self: RowSender, selection: pb.SelectionMessage, **share: int) -> AsyncIterator[Any]:
        async for message in send(self, selection, **share):
            if selection.step == 2 and len(faults) < 2:
                faults.append(selection.step)
                if len(faults) == 2:
                    if fault != "damaged bytes":
                        raise UnavailableError("the connection broke")
                    message.rows = message.rows[:-9] + bytes([message.rows[-9] ^ 1]) + message.rows[-8:]
            yield message

    monkeypatch.setattr(RowSender, "messages", disturbed)
    if fault == "a server that starts again":
        server.stop()
        server.start()
    server.host.rows = RowSender(server.store, part_bytes=1)
    again = received(server, incarnation, 1)
    assert faults == [2, 2]
    assert content(again) == content(undisturbed)
    assert [step.selection.step for step in again] == list(range(NUM_STEPS))


def test_a_later_step_has_the_same_rows_for_a_rank_that_begins_with_it(world: World, server: LiveServer) -> None:
    incarnation = opened(server, a_run(world, server))
    assert content(received(server, incarnation, 2, from_step=2)) == content(received(server, incarnation, 2)[2:])


def test_a_trainer_learns_from_the_server_what_it_would_from_its_own_store(world: World, server: LiveServer) -> None:
    own = training_data(Config(data={"store": world.store}), Ranks(0, 1))  # type: ignore[arg-type]
    asking = Config(client={"selector": server.address, "payload": "records"})  # type: ignore[arg-type]
    told = training_data(asking, Ranks(0, 1))
    assert own.store
    assert dataclasses.replace(own, store=None, origin="") == dataclasses.replace(told, origin="")


def test_a_server_that_may_not_send_rows_refuses_before_a_run_is_opened_and_also_later(
    world: World, tmp_path: Path
) -> None:
    with LiveServer(world, tmp_path, send_rows=False) as server:
        asking = Config(client={"selector": server.address, "payload": "records"})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"server\.send_rows is false.*indices"):
            training_data(asking, Ranks(0, 1))
        incarnation = opened(server, a_run(world, server))
        client = connect(server, 0)
        client.attach(incarnation, from_step=0, num_steps=NUM_STEPS)
        with pytest.raises(ConfigError, match=r"server\.send_rows is false"):
            client.selection(0)
        client.close()


def test_a_server_of_an_earlier_release_is_told_apart() -> None:
    older = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    selector_pb2_grpc.add_SelectorServiceServicer_to_server(selector_pb2_grpc.SelectorServiceServicer(), older)
    port = older.add_insecure_port("127.0.0.1:0")
    older.start()
    asking = Config(client={"selector": f"127.0.0.1:{port}", "payload": "records"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="doesn't know how to send rows: run the same subbatch release"):
        training_data(asking, Ranks(0, 1))
    older.stop(None).wait()


def test_a_payload_of_a_later_release_is_refused(world: World, server: LiveServer) -> None:
    incarnation = opened(server, a_run(world, server))
    with grpc.insecure_channel(server.address) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        later = pb.StreamSelectionsRequest(run="run", incarnation=incarnation, payload=7)  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.StreamSelections(later, timeout=60))
        assert "payload 7 is not known" in str(from_rpc_error(refused.value, doing=""))


# ---- what a server could get wrong


@pytest.fixture
def messages(world: World, server: LiveServer) -> list[pb.SelectionMessage]:
    """Those of rank 1, each row in one of its own."""
    server.host.rows = RowSender(server.store, part_bytes=1)
    incarnation = opened(server, a_run(world, server))
    with grpc.insecure_channel(server.address) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        request = pb.StreamSelectionsRequest(
            run="run", incarnation=incarnation, rank=1, from_step=0, payload=pb.PAYLOAD_RECORDS
        )
        return list(stub.StreamSelections(request, timeout=60))


def test_rows_that_are_missing_doubled_or_another_ranks_are_refused(
    server: LiveServer, messages: list[pb.SelectionMessage]
) -> None:
    def assemble(rank: int, *parts: pb.SelectionMessage) -> Received | None:
        assembly = Assembly(run="run", wanted=WantedRows(rank, WORLD_SIZE, server.store.manifest.max_token_id))
        return [assembly.add(part, step=0) for part in parts][-1]

    head, first, second, *others = messages
    rest = [message for message in others if message.step == 0]
    assert assemble(1, head, first, second, *rest)
    assert assemble(1, head, first) is None
    for wrong in ((head, second), (head, first, first), (head, first, head), (first,)):
        with pytest.raises(WireError):
            assemble(1, *wrong)
    with pytest.raises(WireError, match="aren't those of this rank's share"):
        assemble(0, head, first)
    with pytest.raises(WireError, match="expected the rows of step 0, got step 1"):
        assemble(1, head, next(message for message in others if message.step == 1))
