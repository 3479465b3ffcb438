"""Metric names against Prometheus's conventions: https://prometheus.io/docs/practices/naming/."""

import re

import pytest

from selector_server import metrics as server
from shared.metric import Metric
from train_client import metrics as trainer

ALL = [*server.METRICS, *trainer.METRICS]
# Base units; what is counted stands in their place. `_info` carries facts in its labels.
UNITS = ("seconds", "bytes", "ratio", "info", "steps")
COUNTED = ("calls", "selections", "rows", "tokens", "pushes", "openings", "retries", "seconds", "bytes", "steps")
NO_UNIT = ("ready", "open_runs", "max_open_runs", "scoring_processes", "next_step", "steps_ahead", "ranks", "run_state",
           "resumed_from_step", "loss", "pushes_under_way")  # fmt: skip


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_name_says_its_end_its_unit_and_whether_it_counts(metric: Metric):
    end = "selector" if metric in server.METRICS else "trainer"
    assert re.fullmatch(rf"subbatch_{end}(_[a-z]+)+", metric.name)
    stem = metric.name.removesuffix("_total")
    assert (stem != metric.name) == (metric.kind == "counter")
    assert not stem.endswith(("_count", "_sum", "_bucket"))
    assert not re.search(r"counter|gauge|histogram|milli|minutes|megabytes|kib", stem)
    short = stem.removeprefix(f"subbatch_{end}_")
    last = stem.rpartition("_")[2]
    assert last in COUNTED if metric.kind == "counter" else last in UNITS or short in NO_UNIT
    assert metric.help.endswith(".")


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_labels_are_bounded_words(metric: Metric):
    free = {"run", "rank", "source", "device", "version", "selector", "method", "code"}
    for label in metric.labels:
        assert re.fullmatch("[a-z]+", label)
        assert label in free or (metric.values and metric.values[label])
    assert not metric.values or set(metric.values) <= set(metric.labels)


def test_no_name_is_used_twice():
    names = [name for metric in ALL for name in metric.scraped_names]
    assert len(names) == len(set(names))
