"""Looks at the addresses that a server listens on: free and protected, or this server's own already."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from selector_server.listening import listen
from shared.addresses import with_port
from shared.config import ServerConfig
from shared.doctor.finding import Finding


def ports(config: ServerConfig, *, is_running: bool) -> Iterable[Finding]:
    """Whether the server could listen where it shall.

    Args:
        config: Its ports, and what protects them.
        is_running: Whether a server has the journal, and so these ports.

    Raises:
        SubbatchError: an address that isn't this machine's, one that is unprotected, or tokens that can't be used.
    """
    wanted = {"server.port": (config.host, config.port)}
    if config.health_port is not None:
        wanted["server.health_port"] = (config.host, config.health_port)
    if config.metrics.port is not None:
        wanted["server.metrics.port"] = (config.metrics.host, config.metrics.port)
    taken = {key: where for key, where in wanted.items() if where[1] and not _is_free(*where)}
    others = config.model_copy(update={"port": 0})
    asyncio.run(_try(others))
    for key, (host, port) in wanted.items():
        address = with_port(host, port)
        if key not in taken:
            yield Finding("ports", "ok", f"{address} is free for {key}")
        elif is_running:
            yield Finding("ports", "ok", f"{address} of {key} is taken, as it is while this journal's server runs")
        else:
            what = f"{address} of {key} is taken"
            remedy = f"end what listens there (`ss -ltnp 'sport = :{port}'` shows it), or choose another {key}"
            yield Finding("ports", "problem", what, remedy)


async def _try(config: ServerConfig) -> None:
    """Do all that listening takes, on a free port: protection, tokens, certificates.

    Raises:
        SubbatchError: it can't be done.
    """
    server, _ = listen(config)
    await server.stop(None)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True
