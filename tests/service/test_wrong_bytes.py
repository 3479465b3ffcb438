"""A network that changes bytes: over TLS that is a broken connection, which trainers go on after as after any other."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shared.config import ClientConfig, TlsConfig
from shared.weights import encode_weights
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
