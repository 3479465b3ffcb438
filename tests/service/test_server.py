"""A real server and real clients: who may do what, who waits for whom, and what survives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from selector_server.journal import Journal
from selector_server.run_engine import build_engine
from shared.config import ClientConfig, ModelConfig
from shared.dataset import Store
from shared.errors import (
    ConfigError,
    CursorError,
    FingerprintError,
    RunExistsError,
    StaleIncarnationError,
    SubbatchError,
    UnavailableError,
    WeightsError,
)
from shared.model import load_base_model
from shared.records import Fingerprints
from shared.sampler import draw_large_batch
from shared.selection_config import PRESETS
from shared.weights import content_hash, encode_weights
from shared.wire import same_selection
from tests.service.harness import Job, LiveServer
from tests.support import Server, World, write_config
from train_client.client import SelectorClient


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as live:
        yield live


@pytest.fixture
def job(world: World, server: LiveServer) -> Job:
    return Job(world, server.fingerprints)


def connect(server: LiveServer, run: str = "run", **settings: object) -> SelectorClient:
    options = {"selector": server.address, "wait_timeout_s": 30.0, "connect_timeout_s": 5.0, **settings}
    return SelectorClient(ClientConfig.model_validate(options), run=run, rank=0)


def run_through(client: SelectorClient, job: Job, incarnation: int, *, start: int = 0, stop: int, num_steps: int = 6):
    """What a trainer does from `start` to `stop`, without training: its selections."""
    client.attach(incarnation, from_step=start, num_steps=num_steps)
    selections = []
    for step in range(start, stop):
        selections.append(client.selection(step).selection)
        if step + 1 + 1 < num_steps:
            client.push(step + 1, encode_weights(job.weights(step + 1)))
        client.report(step + 1)
    return selections


def test_a_run_gets_every_step_once_and_in_order(server: LiveServer, job: Job) -> None:
    client = connect(server)
    incarnation, missing = client.open_run(job.info(), cursor=0, restart=False)
    assert (incarnation, missing) == (1, [0])
    client.push(0, encode_weights(job.weights(0)))
    selections = run_through(client, job, incarnation, stop=6)
    assert [s.step for s in selections] == list(range(6))
    assert [s.weights_version for s in selections] == [0, 0, 1, 2, 3, 4]
    assert all(len(set(s.index.tolist())) == 4 for s in selections)
    client.close_run()
    client.close()


def test_nothing_is_selected_past_the_lookahead_nor_without_its_weights(server: LiveServer, job: Job) -> None:
    client = connect(server, wait_timeout_s=2.0)
    incarnation, _ = client.open_run(job.info(), cursor=0, restart=False)
    client.attach(incarnation, from_step=0, num_steps=6)
    with pytest.raises(UnavailableError, match="weights version 0"):
        client.selection(0)
    client.push(0, encode_weights(job.weights(0)))
    for step in (0, 1):
        assert client.selection(step).selection.step == step
    with pytest.raises(UnavailableError, match="rank 0, which has completed 0 steps"):
        client.selection(2)
    client.close()


def test_a_second_job_takes_over_only_from_a_checkpoint_and_then_the_first_is_refused(
    server: LiveServer, job: Job
) -> None:
    first, second = connect(server), connect(server)
    incarnation, _ = first.open_run(job.info(), cursor=0, restart=False)
    first.push(0, encode_weights(job.weights(0)))
    before = run_through(first, job, incarnation, stop=3)
    with pytest.raises(RunExistsError, match=r"run\.restart"):
        second.open_run(job.info(), cursor=0, restart=False)

    newer, missing = second.open_run(job.info(), cursor=2, restart=False)
    assert newer == incarnation + 1
    with pytest.raises(StaleIncarnationError, match="incarnation 2"):
        first.push(4, encode_weights(job.weights(4)))
    for version in missing:
        second.push(version, encode_weights(job.weights(version)))
    second.attach(newer, from_step=2, num_steps=6)
    assert same_selection(second.selection(2).selection, before[2])
    # What was sent before is still good; then the stream ends.
    assert [first.selection(step).selection.step for step in (3, 4)] == [3, 4]
    with pytest.raises(StaleIncarnationError):
        first.selection(5)
    for client in (first, second):
        client.close()


# Of the presets, `colm` and `matched` remember something from step to step.
@pytest.mark.parametrize("preset", PRESETS)
def test_a_server_that_stops_and_starts_again_goes_on_with_the_same_selections(
    world: World, tmp_path: Path, server: LiveServer, job: Job, preset: str
) -> None:
    client = connect(server)
    incarnation, _ = client.open_run(job.info(preset=preset), cursor=0, restart=False)
    client.push(0, encode_weights(job.weights(0)))
    undisturbed = run_through(client, job, incarnation, stop=6)
    client.close()

    with LiveServer(world, tmp_path / "other") as other:
        client = connect(other)
        incarnation, _ = client.open_run(job.info(preset=preset), cursor=0, restart=False)
        client.push(0, encode_weights(job.weights(0)))
        client.attach(incarnation, from_step=0, num_steps=6)
        for step in range(6):
            assert same_selection(client.selection(step).selection, undisturbed[step])
            other.stop()
            other.start()
            if step + 2 < 6:
                client.push(step + 1, encode_weights(job.weights(step + 1)))
            client.report(step + 1)
        client.close()


@pytest.mark.parametrize("preset", ["colm", "matched"])
def test_a_run_that_goes_back_remembers_what_it_did_then(server: LiveServer, job: Job, preset: str) -> None:
    first, second = connect(server), connect(server)
    incarnation, _ = first.open_run(job.info(preset=preset), cursor=0, restart=False)
    first.push(0, encode_weights(job.weights(0)))
    undisturbed = run_through(first, job, incarnation, stop=6)
    first.close()

    incarnation, missing = second.open_run(job.info(preset=preset), cursor=2, restart=False)
    for version in missing:
        second.push(version, encode_weights(job.weights(version)))
    again = run_through(second, job, incarnation, start=2, stop=6)
    assert all(same_selection(left, right) for left, right in zip(again, undisturbed[2:], strict=True))
    second.close()


def test_rows_whose_loss_is_not_finite_are_left_out_and_named(
    server: LiveServer, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    weights = job.weights(0)
    client = connect(server)
    incarnation, _ = client.open_run(job.info(num_steps=1), cursor=0, restart=False)
    client.push(0, encode_weights(weights))
    batch = draw_large_batch(server.store.source_rows, job.info().selection, seed=3, step=0)
    # A token that one row alone has is given an embedding that is no number.
    tokens = [set(row.input_ids.tolist()) for row in server.store.rows(batch)]
    row, token = next(
        (int(batch[at]), min(own))
        for at in range(len(batch))
        if (own := tokens[at] - set().union(*tokens[:at], *tokens[at + 1 :]))
    )
    with torch.no_grad():
        server.model.get_input_embeddings().weight[token] = torch.nan
    client.attach(incarnation, from_step=0, num_steps=1)
    selection = client.selection(0).selection
    assert selection.skipped.tolist() == [row]
    assert row not in selection.index
    assert set(selection.index.tolist()) < set(batch.tolist())
    np.testing.assert_allclose(selection.weight.sum(), 8.0)
    assert f"1 of 8 rows have a loss that isn't finite and are left out: rows {row} of the store" in caplog.text
    client.close()


def test_weights_that_are_wrong_are_refused_and_the_right_ones_still_fit(server: LiveServer, job: Job) -> None:
    client = connect(server)
    client.open_run(job.info(), cursor=0, restart=False)
    client.attach(1, from_step=0, num_steps=6)
    good = job.weights(0)
    name = next(iter(good))
    wrong: dict[str, dict[str, torch.Tensor]] = {
        "missing": {k: v for k, v in good.items() if k != name},
        "unknown": {**good, "extra": torch.zeros(1)},
        "the run was opened with": {**good, name: good[name].T.contiguous()},
        "opened with": {**good, name: good[name].half()},
        "finite": {**good, name: good[name] * float("nan")},
    }
    for reason, weights in wrong.items():
        with pytest.raises(WeightsError, match=reason):
            client.push(0, encode_weights(weights))
    with pytest.raises(WeightsError, match="expects weights version 0"):
        client.push(1, encode_weights(good))
    with pytest.raises(WeightsError):
        client.push(0, b"\x80\x04pickle")
    client.push(0, encode_weights(good))
    client.push(0, encode_weights(good))
    with pytest.raises(WeightsError, match="other content"):
        client.push(0, encode_weights(job.weights(9)))
    assert client.selection(0).selection.step == 0
    client.close()


def test_a_push_whose_client_goes_away_half_way_leaves_nothing_half_done(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(server)
    client.open_run(job.info(), cursor=0, restart=False)
    payload = encode_weights(job.weights(0))
    writing, may_go_on = threading.Event(), threading.Event()
    write_weights = Journal.write_weights

    def slow_write(self: Journal, *arguments: Any) -> None:
        writing.set()
        assert may_go_on.wait(30)
        write_weights(self, *arguments)

    monkeypatch.setattr(Journal, "write_weights", slow_write)
    push = server.host.push("run", 1, 0, payload, content_hash(payload), began=0.0)
    call = asyncio.run_coroutine_threadsafe(push, server._loop)
    assert writing.wait(30)
    call.cancel()  # what gRPC does when the client's connection breaks
    threading.Timer(0.2, may_go_on.set).start()
    client.push(0, payload)  # and what the client does then
    client.attach(1, from_step=0, num_steps=6)
    assert client.selection(0).selection.step == 0
    client.close()


def test_a_push_that_arrives_while_a_selection_is_journalled_is_not_taken_for_one_out_of_order(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(server)
    incarnation, _ = client.open_run(job.info(), cursor=0, restart=False)
    client.push(0, encode_weights(job.weights(0)))
    journalling, looked, dropped = threading.Event(), threading.Event(), threading.Event()
    append, has_weights, keep_weights = Journal.append, Journal.has_weights, Journal.keep_weights

    def slow_append(self: Journal, record: Any, attachment: bytes = b"") -> int:
        if record.WhichOneof("kind") == "selection" and record.selection.step == 2:
            journalling.set()
            looked.wait(0.5)  # in vain where the push can't look now
        return append(self, record, attachment)

    def look_before_and_after(self: Journal, version: int, sha256: str) -> bool:
        if version == 1 and journalling.is_set() and not looked.is_set():
            looked.set()
            assert dropped.wait(30)
        return has_weights(self, version, sha256)

    def keep_and_tell(self: Journal, needed: dict[int, str]) -> None:
        keep_weights(self, needed)
        if journalling.is_set():
            dropped.set()

    monkeypatch.setattr(Journal, "append", slow_append)
    monkeypatch.setattr(Journal, "has_weights", look_before_and_after)
    monkeypatch.setattr(Journal, "keep_weights", keep_and_tell)
    selections = run_through(client, job, incarnation, stop=1)
    assert journalling.wait(30)
    client.push(2, encode_weights(job.weights(2)))
    client.report(2)
    selections += [client.selection(step).selection for step in (1, 2, 3)]
    assert [s.weights_version for s in selections] == [0, 0, 1, 2]
    client.close()


def test_trainers_that_differ_from_the_server_or_from_their_run_are_refused_with_both_values(
    server: LiveServer, job: Job
) -> None:
    client = connect(server)
    mine = server.fingerprints
    for other, word in (
        (Fingerprints("x", mine.tokenizer, mine.base_model), "dataset"),
        (Fingerprints(mine.dataset, "x", mine.base_model), "tokenizer"),
        (Fingerprints(mine.dataset, mine.tokenizer, {"float32": "x"}), "base model"),
    ):
        job._fingerprints = other
        with pytest.raises(FingerprintError, match=word):
            client.open_run(job.info(), cursor=0, restart=False)
    job._fingerprints = mine
    with pytest.raises(ConfigError, match="1000"):
        client.open_run(job.info(large_batch_size=1000), cursor=0, restart=False)
    with pytest.raises(CursorError, match="7"):
        client.open_run(job.info(), cursor=7, restart=False)
    with pytest.raises(CursorError, match="version 2"):  # a volume that was lost
        client.open_run(job.info(), cursor=3, restart=False)
    client.open_run(job.info(), cursor=0, restart=False)
    with pytest.raises(ConfigError, match="timing"):
        client.open_run(job.info(num_steps=9), cursor=1, restart=False)
    with pytest.raises(SubbatchError, match=r"\.\./run"):
        client.open_run(job.info(name="../run"), cursor=0, restart=False)
    client.close()


def test_two_runs_on_one_server_get_what_they_get_alone(
    world: World, tmp_path: Path, server: LiveServer, job: Job
) -> None:
    selections = {}
    clients = {name: connect(server, name) for name in ("a", "b")}
    for name, client in clients.items():
        incarnation, _ = client.open_run(job.info(name, num_probes=1 + (name == "b")), cursor=0, restart=False)
        client.push(0, encode_weights(job.weights(0)))
        client.attach(incarnation, from_step=0, num_steps=6)
    for step in range(6):
        for name, client in clients.items():
            selections[name, step] = client.selection(step).selection
            if step + 2 < 6:
                client.push(step + 1, encode_weights(job.weights(step + 1 + 100 * (name == "b"))))
            client.report(step + 1)
    for name, client in clients.items():
        client.close()
        with LiveServer(world, tmp_path / f"alone-{name}") as alone:
            lone = connect(alone, name)
            incarnation, _ = lone.open_run(job.info(name, num_probes=1 + (name == "b")), cursor=0, restart=False)
            lone.push(0, encode_weights(job.weights(0)))
            lone.attach(incarnation, from_step=0, num_steps=6)
            for step in range(6):
                assert same_selection(lone.selection(step).selection, selections[name, step])
                if step + 2 < 6:
                    lone.push(step + 1, encode_weights(job.weights(step + 1 + 100 * (name == "b"))))
                lone.report(step + 1)
            lone.close()


def test_whose_trainer_has_waited_longest_is_selected_for_first(server: LiveServer, job: Job) -> None:
    names = ["c", "b", "a", "at-hand"]
    clients = {name: connect(server, name) for name in names}
    incarnations = {
        name: client.open_run(job.info(name), cursor=0, restart=False)[0] for name, client in clients.items()
    }
    may_go_on = threading.Event()
    held = asyncio.run_coroutine_threadsafe(server.host._scheduler._in_worker(may_go_on.wait), server._loop)
    for name in reversed(names):
        clients[name].push(0, encode_weights(job.weights(0)))
    may_go_on.set()
    assert held.result(30)
    began = {}
    for name, client in clients.items():
        client.attach(incarnations[name], from_step=0, num_steps=6)
        began[name] = client.selection(0).times.started_unix_ns
        client.close()
    assert sorted(names, key=began.__getitem__) == ["at-hand", "c", "b", "a"]


def test_a_full_server_refuses_one_more_run_until_another_has_ended(world: World, tmp_path: Path) -> None:
    with LiveServer(world, tmp_path / "journal", max_runs=1) as server:
        job = Job(world, server.fingerprints)
        first, second = connect(server, "first"), connect(server, "second")
        first.open_run(job.info("first"), cursor=0, restart=False)
        with pytest.raises(ConfigError, match=r"server.max_runs is 1, and open are first"):
            second.open_run(job.info("second"), cursor=0, restart=False)
        first.open_run(job.info("first"), cursor=0, restart=True)  # which takes no more room
        first.close_run()
        second.open_run(job.info("second"), cursor=0, restart=False)
        with pytest.raises(ConfigError, match=r"open are second"):
            first.open_run(job.info("first"), cursor=0, restart=True)
        for client in (first, second):
            client.close()


def test_runs_with_adapters_share_the_base(world: World) -> None:
    base = load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu"))
    store = Store.open(world.store)
    info = Job(world, Fingerprints("", "", {})).info()
    engines = [build_engine(base, store, info) for _ in range(2)]
    own = {parameter.data_ptr() for parameter in base.parameters()}
    theirs = [{p.data_ptr() for p in engine._model.parameters()} for engine in engines]
    assert own < theirs[0]
    assert theirs[0] & theirs[1] == own
    adapter = sum(prod(spec.shape) for spec in info.trainable)
    for engine, pointers in zip(engines, theirs, strict=True):
        added = (p.numel() for p in engine._model.parameters() if p.data_ptr() in pointers - own)
        assert sum(added) == adapter


def test_the_command_serves_health_and_refuses_a_second_server_on_its_journal(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world)
    with Server(config) as server:
        with grpc.insecure_channel(server.address) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(AssertionError):
            Server(config)
        assert "belongs to a server that is running" in (tmp_path / "server.log").read_text()
        assert server.stop() == 0
