"""How both sides set up gRPC: channel options, TLS, the bearer token, and where plaintext is allowed.

The options make either side notice within seconds that the other has died, even where the kernel still acknowledges
for it: `keepalive_timeout_ms` alone doesn't catch a stopped process, `ping_timeout_ms` does.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import grpc

from shared.addresses import is_loopback, parse_target
from shared.config import ClientConfig, TlsConfig
from shared.errors import ConfigError
from shared.limits_config import LimitsConfig
from shared.tokens import own_token

logger = logging.getLogger(__name__)

# Of what a server sends; what it takes is `server.limits.message_bytes`.
MAX_MESSAGE_BYTES = 16 << 20
TOKEN_KEY = "authorization"
TOKEN_PREFIX = "Bearer "
_MAX_METADATA_BYTES = 16 << 10

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # How long one attempt may take, TLS included, whatever its name says: a distant server, or one to which hundreds of
    # ranks come back at a time, needs more than a second. Where packets are lost, the kernel repeats after 1 and 3 s.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A server that moved is looked for under its name again.
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
    # A stream read by one thread needs no second one inside gRPC.
    ("grpc.experimental.ChannelOptions.SingleThreadedUnaryStream", 1),
]


def server_options(limits: LimitsConfig) -> list[tuple[str, int]]:
    """The channel options of a server."""
    return [
        *_COMMON,
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_concurrent_streams", limits.calls_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.idle_timeout_s * 1000)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
        # Two servers on one port would share its connections silently.
        ("grpc.so_reuseport", 0),
    ]


SERVER_OPTIONS = server_options(LimitsConfig())


def server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """Credentials of a server; with `ca`, clients must show a certificate that it signed.

    The files are read again for every connection, so that certificates may be replaced while the server runs; where
    they can't be read, the certificate of before stays.

    Raises:
        ConfigError: no certificate, or a file that can't be read.
    """
    if tls.certificate is None or tls.key is None:
        raise ConfigError("server.tls needs certificate and key: give both PEM files")

    def again() -> grpc.ServerCertificateConfiguration | None:
        try:
            return _certificates(tls)
        except ConfigError as error:
            logger.error("the server's certificate stays that of before: %s", error)
            return None

    return grpc.dynamic_ssl_server_credentials(_certificates(tls), again, tls.ca is not None)


def _certificates(tls: TlsConfig) -> grpc.ServerCertificateConfiguration:
    assert tls.certificate
    assert tls.key
    pair = (_read(tls.key), _read(tls.certificate))
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=_read(tls.ca) if tls.ca else None)


def open_channel(address: str, tls: TlsConfig | None) -> grpc.Channel:
    """A channel to a server; it connects when it is first used.

    Of the variables that name proxies, `grpc_proxy` alone is heeded, and only with TLS: what `http_proxy` says is about
    the web, and a proxy would be handed what is meant to stay in a cluster, or can't reach it.

    Args:
        address: As `shared.addresses` has it.
        tls: How to encrypt; None: not at all.

    Raises:
        ConfigError: a TLS file that can't be read.
    """
    target = parse_target(address)
    options: list[tuple[str, int | str]] = [*CLIENT_OPTIONS]
    if tls is None or not os.environ.get("grpc_proxy"):
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return grpc.insecure_channel(target.uri, options=options)
    if target.certified:
        options.append(("grpc.ssl_target_name_override", target.certified))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca) if tls.ca else None,
        private_key=_read(tls.key) if tls.key else None,
        certificate_chain=_read(tls.certificate) if tls.certificate else None,
    )
    return grpc.secure_channel(target.uri, credentials, options=options)


def call_metadata(config: ClientConfig) -> tuple[tuple[str, str], ...]:
    """What a client sends with every call: its token, where it has one.

    Raises:
        ConfigError: a token file that can't be used, or a token that would go over a network in plain text.
    """
    token = own_token(config.token_file)
    if not token:
        return ()
    if config.tls is None and not config.insecure and not is_loopback(config.selector):
        raise ConfigError(
            f"the token would go to {config.selector} unencrypted, for everyone on the way to read: set client.tls, "
            "or client.insecure = true where the network itself is private"
        )
    return ((TOKEN_KEY, TOKEN_PREFIX + token),)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"file {path} can't be read: {error.strerror}") from error
