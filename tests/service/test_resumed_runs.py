"""A server that starts on the journals of another: which runs it takes up, which it refuses, and what they kept."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from selector_server.journal import Journal
from selector_server.run_state import RunState
from shared.config import ClientConfig
from shared.errors import JournalError
from shared.weights import encode_weights
from tests.service.harness import Job, LiveServer
from tests.support import World
from train_client.client import SelectorClient

STEPS = 5


def connect(server: LiveServer, run: str) -> SelectorClient:
    config = ClientConfig(selector=server.address, wait_timeout_s=30.0, connect_timeout_s=5.0)
    return SelectorClient(config, run=run, rank=0)


def train(server: LiveServer, job: Job, run: str, *, stop: int) -> SelectorClient:
    """A trainer that has trained `stop` steps, with its connection; at the last one it closes the run."""
    client = connect(server, run)
    incarnation, _ = client.open_run(job.info(run, num_steps=STEPS), cursor=0, restart=False)
    client.push(0, encode_weights(job.weights(0)))
    client.attach(incarnation, from_step=0, num_steps=STEPS)
    for step in range(stop):
        _train_step(client, job, step)
    if stop == STEPS:
        client.close_run()
    return client


def _train_step(client: SelectorClient, job: Job, step: int) -> None:
    assert client.selection(step).selection.step == step
    if step + 2 < STEPS:
        client.push(step + 1, encode_weights(job.weights(step + 1)))
    client.report(step + 1)


def test_a_server_takes_up_every_open_run_where_it_was_and_its_trainers_notice_nothing(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LiveServer(world, tmp_path / "journal") as server:
        job = Job(world, server.fingerprints)
        stops = {"a": 1, "b": 3, "done": STEPS}
        clients = {name: train(server, job, name, stop=stop) for name, stop in stops.items()}
        clients.pop("done").close()
        server.stop()
        with caplog.at_level(logging.INFO):
            server.start()
        assert server.host.names == ["a", "b", "done"]
        assert [name for name in server.host.names if server.host.get(name).run.closed] == ["done"]
        for name, client in clients.items():
            assert f"run {name} resumed from its journal at step" in caplog.text
            for step in range(stops[name], STEPS):
                _train_step(client, job, step)
            client.close_run()
            client.close()


def test_weights_are_read_from_the_disk_only_where_another_server_had_received_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    read_weights = Journal.read_weights

    def reading(self: Journal, version: int, sha256: str) -> bytes:
        read.append(version)
        return read_weights(self, version, sha256)

    monkeypatch.setattr(Journal, "read_weights", reading)
    with LiveServer(world, tmp_path / "journal") as server:
        job = Job(world, server.fingerprints)
        client = train(server, job, "run", stop=0)
        for step in (0, 1):
            assert client.selection(step).selection.weights_version == 0
        client.push(1, encode_weights(job.weights(1)))  # for step 2, which waits until step 0 is reported
        assert read == []
        server.stop()
        server.start()
        client.report(1)
        assert client.selection(2).selection.weights_version == 1
        assert read == [1]
        for step in (3, 4):
            client.push(step - 1, encode_weights(job.weights(step - 1)))
            client.report(step - 1)
            assert client.selection(step).selection.weights_version == step - 1
        assert read == [1]
        client.close_run()
        client.close()


def test_journals_that_cannot_be_read_are_named_in_the_log_and_refused_and_the_others_go_on(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {
        "damaged": r"damaged at byte 0 of \d+",
        "newer": r"is of format 3, this release reads format 2",
    }
    with LiveServer(world, tmp_path / "journal") as server:
        job = Job(world, server.fingerprints)
        for name in ("good", *reasons):
            train(server, job, name, stop=1).close()
        server.stop()
        files = {name: tmp_path / "journal" / name / "journal.bin" for name in reasons}
        data = files["damaged"].read_bytes()
        files["damaged"].write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        files["newer"].write_bytes(files["newer"].read_bytes().replace(b"SBJ2", b"SBJ3"))
        spoilt = {name: file.read_bytes() for name, file in files.items()}
        server.start()
        assert server.host.names == ["good"]
        for name, reason in reasons.items():
            assert f"run {name} can't be resumed" in caplog.text
            client = connect(server, name)
            with pytest.raises(JournalError, match=reason):
                client.open_run(job.info(name, num_steps=STEPS), cursor=0, restart=True)
            client.close()
            assert files[name].read_bytes() == spoilt[name], "what is left of it is nobody's to change"
        good = connect(server, "good")
        incarnation, missing = good.open_run(job.info("good", num_steps=STEPS), cursor=1, restart=False)
        assert (incarnation, missing) == (2, [])
        good.close()


def test_a_selection_does_not_wait_for_the_removal_of_weights_that_it_was_the_last_to_need(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_remove, in_vain = threading.Event(), []
    may_remove.set()
    keep_weights = Journal.keep_weights

    def slow(self: Journal, versions: dict[int, str]) -> None:
        if not may_remove.wait(20):
            in_vain.append(versions)
        keep_weights(self, versions)

    monkeypatch.setattr(Journal, "keep_weights", slow)
    with LiveServer(world, tmp_path / "journal") as server:
        job = Job(world, server.fingerprints)
        client = train(server, job, "run", stop=0)
        for step in (0, 1):
            assert client.selection(step).selection.weights_version == 0
        client.push(1, encode_weights(job.weights(1)))
        may_remove.clear()
        client.report(1)
        assert client.selection(2).selection.weights_version == 1
        assert in_vain == []
        may_remove.set()
        client.close_run()
        client.close()


@pytest.mark.parametrize(("keep_scores", "retain_weights", "versions"), [(True, 2, [2, 3]), (False, 0, [])])
def test_a_server_keeps_as_much_of_the_past_as_it_is_asked_to(
    world: World, tmp_path: Path, keep_scores: bool, retain_weights: int, versions: list[int]
) -> None:
    def open_journal(path: Path) -> Journal:
        return Journal(path, keep_scores=keep_scores, retain_weights=retain_weights)

    with LiveServer(world, tmp_path / "journal", open_journal=open_journal) as server:
        train(server, Job(world, server.fingerprints), "run", stop=STEPS).close()
    files = sorted((tmp_path / "journal" / "run" / "weights").iterdir())
    assert [int(file.name[1:11]) for file in files] == versions
    state = RunState(Journal(tmp_path / "journal" / "run"))
    assert [bool(state.scores(step)) for step in range(STEPS)] == [keep_scores] * STEPS
    for path in [tmp_path / "journal" / "run" / "journal.bin", *files]:
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "journal" / "run").stat().st_mode & 0o777 == 0o700
