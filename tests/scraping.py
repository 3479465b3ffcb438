"""Reading what an end tells Prometheus, with the parser of Prometheus's own library."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

Values = dict[tuple[str, ...], float]


class Scraped:
    """All samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.kinds: dict[str, str] = {}
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.kinds[sample.name] = family.type
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    @property
    def names(self) -> set[str]:
        return set(self._samples)

    def value(self, name: str, **labels: str) -> float:
        (value,) = [value for found, value in self._samples.get(name, []) if labels.items() <= found.items()]
        return value

    def by(self, label: str, name: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in self._samples.get(name, [])}


def get(address: str, path: str, *, token: str = "", ca: Path | None = None) -> tuple[int, str]:
    """Status and body."""
    scheme = "https" if ca else "http"
    request = urllib.request.Request(f"{scheme}://{address}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=ca) if ca else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(address: str) -> Scraped:
    status, text = get(address, "/metrics")
    assert status == 200, text
    return Scraped(text)
