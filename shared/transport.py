"""How both sides set up gRPC: channel options, TLS, the bearer token.

The options make either side notice within seconds that the other has died, even where the kernel still acknowledges
for it: `keepalive_timeout_ms` alone doesn't catch a stopped process, `ping_timeout_ms` does.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from shared.config import TlsConfig
from shared.errors import ConfigError

MAX_MESSAGE_BYTES = 16 << 20
TOKEN_KEY = "authorization"

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two servers on one port would share its connections silently.
    ("grpc.so_reuseport", 0),
]
CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A stream read by one thread needs no second one inside gRPC.
    ("grpc.experimental.ChannelOptions.SingleThreadedUnaryStream", 1),
]


def server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """Credentials of a server; with `ca`, clients must show a certificate that it signed.

    Raises:
        ConfigError: no certificate, or a file that can't be read.
    """
    if tls.certificate is None or tls.key is None:
        raise ConfigError("server.tls needs certificate and key: give both PEM files")
    pair = (_read(tls.key), _read(tls.certificate))
    ca = _read(tls.ca) if tls.ca else None
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


def open_channel(address: str, tls: TlsConfig | None) -> grpc.Channel:
    """A channel to a server; it connects when it is first used.

    Raises:
        ConfigError: a TLS file that can't be read.
    """
    if tls is None:
        return grpc.insecure_channel(address, options=CLIENT_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca) if tls.ca else None,
        private_key=_read(tls.key) if tls.key else None,
        certificate_chain=_read(tls.certificate) if tls.certificate else None,
    )
    return grpc.secure_channel(address, credentials, options=CLIENT_OPTIONS)


def read_token(path: Path | None) -> str:
    """The bearer token in a file; empty where none is configured.

    Raises:
        ConfigError: the file can't be read or is empty.
    """
    if path is None:
        return ""
    token = _read(path).decode(errors="replace").strip()
    if not token:
        raise ConfigError(f"token file {path} is empty: write the token that server and trainers share into it")
    return token


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"file {path} can't be read: {error.strerror}") from error
