"""A journal's disk that is full, under a real server: who waits, who is told what, and that nothing is lost."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.config import ClientConfig
from shared.records import Selection
from shared.weights import encode_weights
from shared.wire import same_selection
from tests.service.harness import Job, LiveServer
from tests.support import World
from train_client.client import SelectorClient

STEPS = 4


class Disk:
    """Makes `os.write` to one kind of file behave as on a disk that is full; `make_room` ends that.

    Half of what is to be written arrives, as where the last free bytes were taken.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._full_for = ""
        self.refused = threading.Event()
        self._write = os.write
        monkeypatch.setattr(os, "write", self._limited)

    def fill(self, suffix: str) -> None:
        """Have no more room for files whose names end like this."""
        self.refused.clear()
        self._full_for = suffix

    def make_room(self) -> None:
        self._full_for = ""

    def _limited(self, descriptor: int, data: bytes) -> int:
        if self._full_for and os.readlink(f"/proc/self/fd/{descriptor}").endswith(self._full_for):
            self._write(descriptor, bytes(data)[: len(data) // 2])
            self.refused.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr("selector_server.scheduler._FULL_DISK_REST_S", 0.1)
    return Disk(monkeypatch)


@pytest.fixture
def server(world: World, tmp_path: Path, disk: Disk) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as live:
        yield live


def connect(server: LiveServer, run: str) -> SelectorClient:
    config = ClientConfig(selector=server.address, wait_timeout_s=60.0, connect_timeout_s=60.0)
    return SelectorClient(config, run=run, rank=0)


def train(
    server: LiveServer, job: Job, name: str, before: Callable[[int], None] = lambda step: None
) -> list[Selection]:
    """A whole run, without training: its selections. `before` is called before the opening, with -1, and each step."""
    client = connect(server, name)
    before(-1)
    incarnation, missing = client.open_run(job.info(name, num_steps=STEPS), cursor=0, restart=False)
    for version in missing:
        client.push(version, encode_weights(job.weights(version)))
    client.attach(incarnation, from_step=0, num_steps=STEPS)
    found = []
    for step in range(STEPS):
        before(step)
        found.append(client.selection(step).selection)
        if step + 2 < STEPS:
            client.push(step + 1, encode_weights(job.weights(step + 1)))
        client.report(step + 1)
    client.close_run()
    client.close()
    return found


@pytest.mark.parametrize("suffix", ["journal.bin", ".part"])
def test_a_run_waits_while_the_disk_is_full_and_goes_on_by_itself_with_the_same_selections(
    server: LiveServer, world: World, disk: Disk, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    """The opening, a selection or weights find no room, twice; somebody makes room once that has been noticed."""
    job = Job(world, server.fingerprints)
    undisturbed = train(server, job, "undisturbed")

    def clean() -> None:
        assert disk.refused.wait(60)
        disk.make_room()

    helpers = [threading.Thread(target=clean) for _ in range(2)]

    def fill(step: int) -> None:
        if step in (-1, 1):
            disk.fill(suffix)
            helpers[(step + 1) // 2].start()

    with caplog.at_level(logging.WARNING):
        found = train(server, job, "filled", before=fill)
    for helper in helpers:
        helper.join()
    for left, right in zip(undisturbed, found, strict=True):
        assert same_selection(dataclasses.replace(left, run="filled"), right)
    assert caplog.text.count("No space left on device") >= 2
    assert caplog.text.count("MiB free: make room there") >= 2


def test_weights_that_the_disk_has_no_room_for_are_refused_before_they_are_sent(
    server: LiveServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, client = Job(world, server.fingerprints), connect(server, "run")
    client.open_run(job.info(), cursor=0, restart=False)
    payload = encode_weights(job.weights(0))
    usage = shutil.disk_usage(server._folder)
    free = iter([len(payload) - 1, len(payload) - 1, len(payload)])
    asked = []

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return usage._replace(free=next(free, usage.free))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    client.push(0, payload)
    assert len(asked) == 3, "room is asked for, told of in the error, and asked for again"
    client.close()
