"""Values of metrics at one moment, and how they are told to Prometheus by its own library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from shared.durations import Durations
from shared.metric import Metric


@dataclass(frozen=True)
class Sample:
    """One value of a metric.

    Attributes:
        metric: Which.
        value: A number, or durations of a histogram.
        labels: Values of its labels, in its order.
    """

    metric: Metric
    value: float | Durations
    labels: tuple[str, ...] = ()


class Samples:
    """A Prometheus collector of whatever a function gives when it is asked; metrics without a value are left out."""

    def __init__(self, collect: Callable[[], Iterable[Sample]]) -> None:
        """`collect` is called in the threads that answer scrapes."""
        self._collect = collect

    def describe(self) -> list[Any]:
        """Nothing: asking would cost a scrape before there is anything to tell."""
        return []

    def collect(self) -> Iterator[Any]:
        """The families of all metrics that have values now."""
        families: dict[str, Any] = {}
        for sample in self._collect():
            metric = sample.metric
            family = families.get(metric.name)
            if family is None:
                kind = _FAMILIES[metric.kind]
                family = families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
            if isinstance(sample.value, Durations):
                family.add_metric(sample.labels, sample.value.buckets(), sample.value.total)
            else:
                family.add_metric(sample.labels, sample.value)
        yield from families.values()


_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
