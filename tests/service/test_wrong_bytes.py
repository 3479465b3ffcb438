"""A network that changes bytes: a broken connection, which trainers go on after as after any other, over TLS or not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from selector_server.outgoing import Outgoing
from shared.config import ClientConfig, TlsConfig
from shared.pb.v1 import selector_pb2 as pb
from shared.weights import encode_weights
from shared.wire import decode_selection
from tests.chaos.proxy import Network
from tests.service.harness import Job, LiveServer
from tests.support import World
from train_client.client import SelectorClient


def test_wrong_bytes_on_the_wire_delay_selections_and_change_none(world: World, tmp_path: Path) -> None:
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1,DNS:localhost -keyout key.pem -out cert.pem".split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    pair = TlsConfig(ca=tmp_path / "cert.pem", certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    with LiveServer(world, tmp_path / "journal", tls=pair) as server, Network(server.address) as network:
        job = Job(world, server.fingerprints)
        info = job.info(num_steps=6)
        client = SelectorClient(ClientConfig(selector=network.address, tls=pair), run="run", rank=0)
        incarnation, missing = client.open_run(info, cursor=0, restart=False)
        for version in missing:
            client.push(version, encode_weights(job.weights(version)))
        client.attach(incarnation, from_step=0, num_steps=6)
        for step in range(6):
            assert client.selection(step).selection.step == step
            network.corrupt(1, ("down",) if step % 2 else ("up",))
            if info.timing.steps_using(step + 1):
                client.push(step + 1, encode_weights(job.weights(step + 1)))
            client.report(step + 1)
        client.close_run()
        client.close()


def test_a_row_number_that_is_damaged_without_tls_is_asked_for_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Outgoing.message
    damaged: list[int] = []

    async def damage_once(self: Outgoing, step: int) -> pb.SelectionMessage:
        message = await sent(self, step)
        if step != 1 or damaged:
            return message
        wrong = pb.SelectionMessage()
        wrong.CopyFrom(message)
        index = decode_selection(message.arrow).index
        assert wrong.arrow.count(index.tobytes()) == 1
        wrong.arrow = wrong.arrow.replace(index.tobytes(), np.flip(index).tobytes())
        damaged.extend(index.tolist())
        return wrong

    monkeypatch.setattr(Outgoing, "message", damage_once)
    with LiveServer(world, tmp_path / "journal") as server:
        job = Job(world, server.fingerprints)
        client = SelectorClient(ClientConfig(selector=server.address), run="run", rank=0)
        incarnation, missing = client.open_run(job.info(num_steps=3), cursor=0, restart=False)
        for version in missing:
            client.push(version, encode_weights(job.weights(version)))
        client.attach(incarnation, from_step=0, num_steps=3)
        assert client.selection(0).selection.step == 0
        assert client.selection(1).selection.index.tolist() == damaged
        client.close()
