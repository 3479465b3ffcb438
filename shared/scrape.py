"""What is answered where metrics are read: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from shared.sample import Sample, Samples
from shared.scrape_port import Page, Route


def routes(collect: Callable[[], Iterable[Sample]], *, not_ready: Callable[[], str]) -> dict[str, Route]:
    """The answers of one end, by path.

    Args:
        collect: Gives the values of this end's metrics now. Those of the process itself come with them.
        not_ready: Why this end isn't ready, in words; empty where it is.
    """
    registry = CollectorRegistry()
    registry.register(Samples(collect))
    ProcessCollector(registry=registry)

    def metrics(headers: Mapping[str, str]) -> Page:
        encode, kind = choose_encoder(headers.get("accept", ""))
        return Page(encode(registry), kind)

    def alive(_headers: Mapping[str, str]) -> Page:
        return Page(b"alive\n")

    def ready(_headers: Mapping[str, str]) -> Page:
        why = not_ready()
        return Page(f"not ready: {why}\n".encode(), status=503) if why else Page(b"ready\n")

    return {"/metrics": metrics, "/healthz": alive, "/readyz": ready}
