"""The HTTP port on which an end's metrics are read, by Prometheus or whoever may.

It answers in threads of its own. Like the server's own port it can be reached from other machines only with TLS and
tokens or certificates, unless that is asked for.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from shared.addresses import is_loopback
from shared.config import MetricsConfig, TlsConfig
from shared.errors import ConfigError
from shared.transport import TOKEN_PREFIX

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 32
_SLOWEST_S = 10.0
# A page may load what comes from here and nothing else, run no script written into it, and sit in no other page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Page:
    """What a path answers."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200


# From a request's headers, by name in lower case, to what it answers.
Route = Callable[[Mapping[str, str]], Page]


@dataclass(frozen=True)
class Reader:
    """Who may read what a port serves.

    Attributes:
        may_read: Whether a bearer token lets its sender read; None where anybody may.
        open_paths: What anybody may read: health, for probes that send no token.
    """

    may_read: Callable[[str], bool] | None = None
    open_paths: frozenset[str] = frozenset({"/healthz", "/readyz"})

    def refuses(self, path: str, authorization: str) -> bool:
        """Whether a request for a path with this Authorization header is refused."""
        if self.may_read is None or path in self.open_paths:
            return False
        return not authorization.startswith(TOKEN_PREFIX) or not self.may_read(authorization.removeprefix(TOKEN_PREFIX))


class ScrapePort:
    """Answers on a port until it is closed."""

    def __init__(self, config: MetricsConfig, routes: Mapping[str, Route], reader: Reader, *, branch: str) -> None:
        """Listen and begin to answer.

        Args:
            config: Where; its port is set.
            routes: By path.
            reader: Who may read.
            branch: The configuration's, for errors.

        Raises:
            ConfigError: an address that is taken or no address, files that can't be used, or a port that other machines
                could reach unprotected.
        """
        require_usable(config, has_tokens=reader.may_read is not None, branch=branch)
        try:
            self._server = _Server(config, routes, reader, branch)
        except OSError as error:
            raise ConfigError(
                f"metrics can't be served on {config.host}:{config.port}: {error.strerror or error}: choose another "
                f"{branch}.port, or 0 for a free one"
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="subbatch-metrics", daemon=True)
        self._thread.start()
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.address = f"{host}:{self._server.server_address[1]}"
        logger.info("metrics on %s://%s/metrics", "https" if config.tls else "http", self.address)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, config: MetricsConfig, routes: Mapping[str, Route], reader: Reader, branch: str) -> None:
        self.routes, self.reader = routes, reader
        self._tls, self._branch = config.tls, branch
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        super().__init__((config.host, config.port or 0), _Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server what this machine is called."""
        TCPServer.server_bind(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; its TLS handshake is left to its own thread, and its certificate is read anew."""
        connection, address = super().get_request()
        connection.settimeout(_SLOWEST_S)
        if self._tls:
            try:
                context = _context(self._tls, self._branch)
            except ConfigError as error:
                connection.close()
                logger.error("%s", error)
                raise OSError(str(error)) from error
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, unless too many do already."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away, was too slow or spoke no TLS is nothing to log."""
        logger.debug("a metrics request from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "subbatch", ""

    def do_GET(self) -> None:
        """Answer a request."""
        path = urlsplit(self.path).path
        route = self.server.routes.get(path)
        if self.server.reader.refuses(path, self.headers.get("Authorization", "")):
            page = Page(b"a bearer token that may read metrics is needed\n", status=401)
        elif route is None:
            page = Page(f"nothing here; there is {' '.join(self.server.routes)}\n".encode(), status=404)
        else:
            page = self._answer(route)
        self.send_response(page.status)
        if page.status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def _answer(self, route: Route) -> Page:
        try:
            return route({name.lower(): value for name, value in self.headers.items()})
        except Exception as error:  # a reader must hear of it, and the next request is answered again
            logger.exception("%s can't be answered", self.path.split("?")[0])
            return Page(f"this can't be answered now: {type(error).__name__}\n".encode(), status=500)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def _context(tls: TlsConfig, branch: str) -> ssl.SSLContext:
    """TLS as the files say now.

    Raises:
        ConfigError: no certificate, or files that can't be used.
    """
    if tls.certificate is None or tls.key is None:
        raise ConfigError(f"{branch}.tls needs certificate and key: give both PEM files")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.ca:
            context.load_verify_locations(tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{branch}.tls can't be used: {error}: give PEM files that belong together") from None
    return context


def require_usable(config: MetricsConfig, *, has_tokens: bool, branch: str) -> None:
    """Check all that listening takes but the port: protection and certificates.

    Raises:
        ConfigError: what is missing, or files that can't be used.
    """
    _require_protection(config, has_tokens=has_tokens, branch=branch)
    if config.tls:
        _context(config.tls, branch)


def _require_protection(config: MetricsConfig, *, has_tokens: bool, branch: str) -> None:
    """Refuse a port that other machines can read unencrypted, or whoever they are.

    Raises:
        ConfigError: what is missing.
    """
    if is_loopback(config.host) or config.insecure:
        return
    missing = [] if config.tls else [f"{branch}.tls"]
    if not has_tokens and not (config.tls and config.tls.ca):
        missing.append(f"{branch}.token_file, or {branch}.tls.ca for certificates of those who scrape")
    if missing:
        raise ConfigError(
            f"{branch}.host {config.host} can be reached from other machines: set {' and '.join(missing)}, or "
            f"{branch}.insecure = true where the network itself is private"
        )
