"""Health for what watches a server from outside: a port of its own for probes, and the command that asks.

Kubernetes' gRPC probes speak neither TLS nor tokens. So a server whose calls are encrypted can offer the standard
health service alone on a second, plaintext port; whoever reaches it learns whether it serves, and nothing else.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.addresses import with_port
from shared.config import Config, ServerConfig, TlsConfig
from shared.errors import ConfigError, UnavailableError, from_rpc_error
from shared.transport import open_channel, server_options

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}


def probe_server(config: ServerConfig, servicer: Any) -> grpc.aio.Server | None:
    """A server of the health service alone on `server.health_port`, not started yet; None where no such port is set.

    Args:
        config: Where to listen.
        servicer: The health servicer that the main server uses too, so that both say the same.

    Raises:
        ConfigError: the port is taken.
    """
    if config.health_port is None:
        return None
    server = grpc.aio.server(options=server_options(config.limits))
    address = with_port(config.host, config.health_port)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"can't listen for probes on {address}: {' '.join(str(error).split())}: choose another server.health_port"
        ) from None
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return server


def require_serving(config: Config, *, service: str = "") -> str:
    """Ask a server for its health: on its probe port where the configuration has one, else where trainers call.

    Args:
        config: The server's address and, without a probe port, the client's TLS files are used.
        service: The name that health is asked of; empty for the server as a whole.

    Returns:
        The address that answered.

    Raises:
        SubbatchError: nobody answers, or the answer isn't SERVING.
    """
    address, tls = _where(config)
    with open_channel(address, tls) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=config.client.call_timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, doing=f"asking {address} for its health") from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"{address} says {status}, not SERVING: see the server's log")
    return address


def _where(config: Config) -> tuple[str, TlsConfig | None]:
    server = config.server
    if server.health_port is None:
        return config.client.selector, config.client.tls
    return with_port(_EVERYWHERE.get(server.host, server.host), server.health_port), None
