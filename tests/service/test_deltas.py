"""Weights that are pushed as how they differ from those before: a real server stores, hashes and scores the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared.config import ClientConfig
from shared.errors import WeightsError
from shared.records import Selection
from shared.weights import content_hash, encode_weights
from shared.wire import decode_selection, same_selection
from tests.service.harness import Job, LiveServer
from tests.support import World
from train_client.client import SelectorClient
from train_client.push import Pusher

STEPS = 6


class Sender:
    """A trainer's client that counts what it sends, and the weights of a job that trains a little in every step."""

    def __init__(self, server: LiveServer, job: Job, *, deltas: bool = True) -> None:
        config = ClientConfig(selector=server.address, push_deltas=deltas, wait_timeout_s=30.0, connect_timeout_s=5.0)
        self.client, self._job = SelectorClient(config, run="run", rank=0), job
        self.sent: list[int] = []
        whole = self.client._calls.push_weights
        self.client._calls.push_weights = lambda messages, **named: whole(self._counted(messages), **named)

    def _counted(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        self.sent.append(0)
        for message in messages:
            self.sent[-1] += len(message)
            yield message

    def open(self) -> None:
        incarnation, _ = self.client.open_run(self._job.info(num_steps=STEPS), cursor=0, restart=False)
        self.client.attach(incarnation, from_step=0, num_steps=STEPS)

    def weights(self, version: int) -> dict[str, torch.Tensor]:
        start, step = self._job.weights(0), self._job.weights(1)
        return {name: start[name] + 1e-4 * version * step[name] for name in start}

    def payload(self, version: int) -> memoryview:
        return memoryview(bytearray(encode_weights(self.weights(version))))

    def push(self, version: int, before: memoryview | None) -> None:
        self.client.push(version, self.payload(version), before)


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as server:
        yield server


@pytest.fixture
def sender(world: World, server: LiveServer) -> Iterator[Sender]:
    sender = Sender(server, Job(world, server.fingerprints))
    yield sender
    sender.client.close()


def stored(server: LiveServer) -> dict[int, str]:
    """Hashes of the weights in the journal's folder, by version, of what the files hold."""
    run = server.host.get("run").run
    return {
        int(path.name[1:11]): content_hash(path.read_bytes()) for path in (run.journal.folder / "weights").iterdir()
    }


def test_the_server_stores_the_whole_of_what_is_sent_as_a_delta(server: LiveServer, sender: Sender) -> None:
    pusher = Pusher(sender.client.push, run="run", keeps_last=True)
    sender.open()
    for step in range(STEPS):
        if step < STEPS - 1:
            pusher.push(step, sender.weights(step))
            pusher.wait_durable()
            assert stored(server)[step] == content_hash(encode_weights(sender.weights(step)))
        selection = sender.client.selection(step).selection
        assert selection.weights_version == max(0, step - 1)
        sender.client.report(step + 1)
    first, *others = sender.sent
    assert len(others) == STEPS - 2
    assert max(others) < 0.8 * first
    sender.client.close_run()
    assert stored(server) == {}
    pusher.close()


def test_selections_are_those_of_whole_pushes(world: World, tmp_path: Path) -> None:
    found: list[list[tuple[str, Selection]]] = []
    for deltas in (False, True):
        with LiveServer(world, tmp_path / str(deltas)) as server:
            sender = Sender(server, Job(world, server.fingerprints), deltas=deltas)
            sender.open()
            for step in range(STEPS - 1):
                sender.push(step, sender.payload(step - 1) if deltas and step else None)
                sender.client.selection(step)
                sender.client.report(step + 1)
            run = server.host.get("run").run
            messages = map(run.selection, range(STEPS - 1))
            found.append([(message.weights_sha256, decode_selection(message.arrow)) for message in messages])
            sender.client.close()
    for (left_hash, left), (right_hash, right) in zip(*found, strict=True):
        assert left_hash == right_hash != ""
        assert same_selection(left, right)


def test_a_restarted_server_that_lacks_the_base_asks_for_the_whole_and_goes_on(
    server: LiveServer, sender: Sender
) -> None:
    sender.open()
    sender.push(0, None)
    assert sender.client.selection(0).selection.step == 0
    server.stop()
    for path in (server.host.get("run").run.journal.folder / "weights").iterdir():
        path.unlink()
    server.start()
    # Step 1 waits for version 0, which was lost: it comes again, whole.
    sender.push(0, None)
    sender.client.report(1)
    assert sender.client.selection(1).selection.step == 1
    for path in (server.host.get("run").run.journal.folder / "weights").iterdir():
        path.unlink()
    sender.push(1, sender.payload(0))
    assert len(sender.sent) == 4
    assert sender.sent[-1] > len(sender.payload(1)) > sender.sent[-2]
    sender.client.report(2)
    assert sender.client.selection(2).selection.weights_version == 1


def test_a_delta_that_was_made_from_other_weights_is_refused_and_changes_nothing(
    server: LiveServer, sender: Sender
) -> None:
    sender.open()
    sender.push(0, None)
    wrong = sender.payload(0)
    wrong[-1] ^= 1
    with pytest.raises(WeightsError, match=r"rebuilt from version 0, have hash .*push the whole"):
        sender.push(1, wrong)
    assert list(stored(server)) == [0]


def test_a_pusher_that_keeps_the_last_payload_gives_it_to_the_next_upload_in_three_places() -> None:
    job = [{"a": torch.full((5,), float(version)).double()} for version in range(6)]
    seen: list[tuple[bytes, bytes | None, int]] = []

    def upload(version: int, payload: memoryview, before: memoryview | None) -> None:
        place = torch.frombuffer(payload, dtype=torch.uint8).data_ptr()
        seen.append((bytes(payload), bytes(before) if before is not None else None, place))

    pusher = Pusher(upload, run="run", keeps_last=True, dtype="bfloat16")
    for version, tensors in enumerate(job):
        pusher.push(version, tensors)
    pusher.wait_durable()
    pusher.close()
    payloads = [encode_weights({"a": tensors["a"].bfloat16()}) for tensors in job]
    assert [payload for payload, _, _ in seen] == payloads
    assert [before for _, before, _ in seen] == [None, *payloads[:-1]]
    assert len({place for _, _, place in seen}) <= 3
