"""Hundreds of ranks on one run: each gets every selection, once and in order, and the server's memory stays bounded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from rich.console import Console

from selector_server import service
from selector_server.bench import subscribers
from selector_server.bench.subscribers import command
from selector_server.bench.subscribers.measure import Measured, measure
from selector_server.bench.subscribers.order import RUN, Order
from selector_server.bench.workload import make_store
from selector_server.engine import SelectionEngine
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.wire import encode_selection
from tests.service.harness import LiveServer
from tests.service.test_pace import TIMEOUT, Ranks
from tests.support import World


def content(order: Order) -> str:
    """What the ranks are to receive, selected here."""
    store = make_store(num_rows=4 * order.sub_batch, vocab_size=8)
    engine = SelectionEngine(torch.nn.Linear(1, 1), store, order.info.selection, run=RUN, seed=0)
    digest = hashlib.sha256()
    for step in range(order.steps):
        digest.update(encode_selection(engine.select(step, 0).selection))
    return digest.hexdigest()


def growth(measured: Measured) -> int:
    if measured.server_peak_bytes is None or measured.server_start_bytes is None:
        pytest.skip("this system doesn't tell a process's memory")
    return measured.server_peak_bytes - measured.server_start_bytes


def test_64_ranks_receive_200_selections_each_in_order_and_those_that_do_not_read_cost_bounded_memory() -> None:
    order = Order(ranks=64, steps=200, lookahead=8, reports=True, sub_batch=1024, idle=16)
    measured = measure(order)
    assert measured.content == content(order)
    # Everything once per rank, and little beside it: what a fan-out behind a server would have to pay for.
    assert measured.received_bytes is not None
    assert 1.0 < measured.received_bytes / (64 * 200 * 24 * 1024) < 1.1
    unread = 16 * 200 * 24 * 1024
    assert growth(measured) < unread / 2


@pytest.mark.long
def test_ranks_that_do_not_read_the_rows_they_are_sent_cost_bounded_memory() -> None:
    order = Order(ranks=8, steps=160, lookahead=160, reports=False, sub_batch=2048, idle=4, records=True)
    measured = measure(order)
    assert measured.content == content(order)
    assert measured.received_bytes is not None
    rows = measured.received_bytes - 8 * 160 * 24 * 2048  # all ranks were sent all indices, and each its rows
    assert rows > 160 * 2048 * 4 * 150
    assert growth(measured) < rows / 4


def test_a_watcher_that_reads_nothing_is_sent_little_and_then_how_the_run_stands(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_SECONDS_BETWEEN_STATUSES", 0.0)  # nothing but the watcher's own pace holds them back
    with LiveServer(world, tmp_path / "journal") as server:
        ranks = Ranks(server, world, 1024)
        ranks.open()
        # A connection of its own, which takes in no more than HTTP/2's 64 KiB for a call that isn't read.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            request = pb.WatchRunRequest(run="run")
            idle = selector_pb2_grpc.SelectorServiceStub(channel).WatchRun(request, timeout=TIMEOUT)
            idle.initial_metadata()  # which comes with the first status
            reading = ranks.stub.WatchRun(request, timeout=TIMEOUT)
            read = 0
            for rank in range(200):
                ranks.report(rank, 1)
                read += next(status for status in reading if status.completed[rank]).ByteSize()
            held = 0
            while not (status := next(idle)).completed[199]:
                held += status.ByteSize()
        ranks.close()
    assert held < 1 << 20 < read / 2


def test_the_benchmark_prints_and_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(order: Order) -> Measured:
        delay_ms = np.full((order.ranks, order.steps), float(order.ranks))
        delay_ms[: order.idle] = 1e9  # whoever doesn't read says nothing about the server
        seconds = delay_ms.size / 4321.0
        return Measured(100 << 20, (100 + order.ranks) << 20, seconds, delay_ms, "", 5432 * delay_ms.size)

    monkeypatch.setattr(command, "measure", made_up)
    console = Console(record=True, width=160)
    result = subscribers.run(out=tmp_path, quick=True, console=console)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["memory_ratio"] == pytest.approx(612 / 108)
    assert [row["messages_per_s"] for row in result["measured"].values()] == pytest.approx([4321] * 7)
    assert result["measured"]["reports, 512 ranks"]["delay_ms_p95"] == 512
    assert result["measured"]["idle, 8 of 16 ranks"]["delay_ms_p95"] == 16
    assert {row["selection_bytes"] for row in result["measured"].values()} == {5432}
    assert "memory at 512 ranks 5.67 × that at 8" in console.export_text()
    assert (tmp_path / "subscribers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_512_ranks_receive_1000_selections_each_in_at_most_twice_the_memory_of_eight() -> None:
    few, many = (Order(ranks, steps=1000, lookahead=16, reports=True) for ranks in (8, 512))
    measured = [measure(few), measure(many)]
    assert measured[0].content == measured[1].content == content(few)
    assert growth(measured[1]) >= 0
    assert measured[1].server_peak_bytes <= 2 * measured[0].server_peak_bytes  # type: ignore[operator]
