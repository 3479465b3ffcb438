"""Where a server's metrics are read, and its web page: their port, who may read there, and what is answered."""

from __future__ import annotations

from importlib.metadata import version

import torch

from selector_server.collect import Collector
from selector_server.host import Host
from selector_server.live.pages import OPEN_PATHS, page_routes
from selector_server.readiness import Readiness
from selector_server.security.caller import ADMIN
from shared.config import ServerConfig
from shared.dataset import Store
from shared.scrape import routes
from shared.scrape_port import Reader, ScrapePort
from shared.source_labels import SourceLabels
from shared.tokens import TokenFile

# The names of a server's tokens that may read metrics, which are of everybody's runs.
_MAY_SCRAPE = (ADMIN, "metrics")


def open_metrics_port(
    config: ServerConfig, host: Host, readiness: Readiness, store: Store, device: torch.device, *, address: str
) -> ScrapePort:
    """Serve metrics and the web page on the port that is set for them; called on the event loop.

    Args:
        config: Names the port.
        host: The server's runs.
        readiness: Whether it can serve.
        store: The rows of its runs.
        device: Where this process scores.
        address: Where trainers reach the server.

    Raises:
        ConfigError: a port that can't be used, or may not without protection.
    """
    collect = Collector(
        host,
        readiness,
        SourceLabels(store.source_names, store.source_rows),
        device=device,
        version=version("subbatch"),
    )
    pages = routes(collect, not_ready=lambda: readiness.why_not) | page_routes(host, store, address=address)
    return ScrapePort(config.metrics, pages, _reader(config), branch="server.metrics")


def _reader(config: ServerConfig) -> Reader:
    own = config.metrics.token_file
    tokens = TokenFile(own or config.token_file)
    if tokens.is_empty:
        return Reader()
    return Reader(
        lambda token: bool(tokens.owner(token)) if own else tokens.owner(token) in _MAY_SCRAPE,
        open_paths=Reader.open_paths | OPEN_PATHS,
    )
