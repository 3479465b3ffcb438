"""The port of a server: its options and interceptors, where it listens, and what it refuses to listen without."""

from __future__ import annotations

import logging

import grpc

from selector_server.security.authenticator import Authenticator
from shared.addresses import is_loopback, with_port
from shared.config import ServerConfig
from shared.errors import ConfigError
from shared.tokens import TokenFile
from shared.transport import server_credentials, server_options

logger = logging.getLogger(__name__)


def listen(config: ServerConfig) -> tuple[grpc.aio.Server, str]:
    """A server that has its port but doesn't answer yet, and its address as `host:port`.

    Raises:
        ConfigError: an address that is taken or no address, files that can't be used, or a server that other machines
            could reach unprotected.
    """
    tokens = require_listenable(config)
    interceptors = None if tokens.is_empty else [Authenticator(tokens)]
    server = grpc.aio.server(options=server_options(config.limits), interceptors=interceptors)
    address = with_port(config.host, config.port)
    try:
        if config.tls:
            port = server.add_secure_port(address, server_credentials(config.tls))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"can't listen on {address}: {' '.join(str(error).split())}: is another server there? choose another "
            "server.port, or 0 for a free one"
        ) from None
    return server, with_port(config.host, port)


def require_listenable(config: ServerConfig) -> TokenFile:
    """Check all that listening takes but the port: protection, tokens, certificates. Gives the tokens.

    Raises:
        ConfigError: what is missing, or files that can't be used.
    """
    tokens = TokenFile(config.token_file)
    _require_protection(config, has_tokens=not tokens.is_empty)
    if config.tls:
        server_credentials(config.tls)
    return tokens


def _require_protection(config: ServerConfig, *, has_tokens: bool) -> None:
    """Refuse a server that other machines can reach without encryption, or whoever they are.

    Raises:
        ConfigError: what is missing.
    """
    if is_loopback(config.host):
        return
    missing = []
    if config.tls is None:
        missing.append("server.tls (`selector-server certs` makes what it takes)")
    if not has_tokens and not (config.tls and config.tls.ca):
        missing.append("server.token_file, or server.tls.ca for certificates of clients")
    if not missing:
        return
    if not config.insecure:
        raise ConfigError(
            f"server.host {config.host} can be reached from other machines: set {' and '.join(missing)}, or "
            "server.insecure = true where the network itself is private"
        )
    logger.warning("%s can be reached from other machines and is insecure: it lacks %s", config.host, missing)
