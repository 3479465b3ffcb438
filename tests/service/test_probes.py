"""A server that asks its callers for TLS and tokens, and the probes that have neither."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from selector_server.security.certs import make_certificates
from shared.pb.v1 import selector_pb2, selector_pb2_grpc
from tests.support import ENVIRONMENT, Server, World, run_cli, write_config
from train_client.process import free_port


def test_a_plaintext_probe_learns_that_a_protected_server_serves_and_nothing_else(world: World, tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", [], days=1, now=datetime.datetime.now(datetime.timezone.utc))
    (tmp_path / "tokens").write_text("alice:0123456789abcdef\n")
    pem = {side: {"ca": tmp_path / "certs/ca.pem", "certificate": tmp_path / f"certs/{side}.pem",
                  "key": tmp_path / f"certs/{side}.key"} for side in ("server", "client")}  # fmt: skip
    port = free_port()
    protected = {"tls": pem["server"], "token_file": tmp_path / "tokens", "health_port": port}
    config = write_config(tmp_path, world, server=protected, client={"tls": pem["client"]})
    with Server(config) as server:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError) as refused:
                list(
                    selector_pb2_grpc.SelectorServiceStub(channel).WatchRun(selector_pb2.WatchRunRequest(), timeout=10)
                )
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        asked = run_cli("selector_server", "health", "--config", config)
        assert (asked.returncode, asked.stdout) == (0, f"127.0.0.1:{port} serves\n")

        without_port = write_config(
            tmp_path / "encrypted", world, client={"tls": pem["client"], "selector": server.address}
        )
        encrypted = run_cli("selector_server", "health", "--config", without_port)
        assert (encrypted.returncode, encrypted.stdout) == (0, f"{server.address} serves\n")

        second = run_cli("selector_server", "serve", "--config", config, "--server.journal", tmp_path / "other")
        assert second.returncode == 2
        assert f"can't listen for probes on 127.0.0.1:{port}" in second.stderr
        assert "server.health_port" in second.stderr
    gone = run_cli("selector_server", "health", "--config", config, "--client.call_timeout_s", 5)
    assert gone.returncode == 1
    assert "asking 127.0.0.1" in gone.stderr


def test_a_probe_imports_nothing_heavy() -> None:
    """It runs every few seconds, beside a server that wants its cores."""
    code = (
        "import sys, selector_server.probes; "
        "print(sorted({'torch', 'transformers', 'pandas', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
