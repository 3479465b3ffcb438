"""The web page of a server, read only, on the port of its metrics: three files, and the state that they draw.

The files are the same for everybody and may be read without a token; the state may not where tokens are used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from importlib.resources import files

from selector_server.host import Host
from selector_server.live.ask import as_dict
from shared.dataset import Store
from shared.scrape_port import Page, Route

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
OPEN_PATHS = frozenset(_FILES)
# An event loop that is busy for longer is in trouble, and the page says that there is no answer.
_PATIENCE_S = 5.0


def page_routes(host: Host, store: Store, *, address: str) -> dict[str, Route]:
    """What the page's paths answer; called on the event loop.

    Args:
        host: The server's runs.
        store: Their rows.
        address: Where trainers reach the server.
    """
    loop = asyncio.get_running_loop()

    async def read() -> list[dict[str, object]]:
        found = []
        for hosted in host.runs_to_show:
            async with hosted.lock:
                found.append(as_dict(host.status(hosted, detail=True)))
        return found

    def state(_headers: Mapping[str, str]) -> Page:
        future = asyncio.run_coroutine_threadsafe(read(), loop)
        try:
            runs = future.result(_PATIENCE_S)
        finally:
            future.cancel()
        server = {
            "address": address,
            "num_rows": len(store),
            "num_sources": len(store.source_names),
            "scoring_processes": host.scoring_processes,
        }
        return Page(json.dumps({**server, "runs": runs}).encode(), "application/json")

    return {path: _file(*named) for path, named in _FILES.items()} | {"/status.json": state}


def _file(name: str, kind: str) -> Route:
    page = Page((files("selector_server.live") / "page" / name).read_bytes(), kind)
    return lambda _headers: page
