"""The list of an end's metrics, for people and for what checks dashboards and alerts: `selector-server metrics`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Column, Table

from shared.metric import Metric


def add_metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `print_metrics` takes."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_metrics(metrics: Sequence[Metric], console: Console, *, as_json: bool) -> None:
    """Print name, kind, labels and meaning of each."""
    if as_json:
        console.print_json(json.dumps([asdict(metric) | {"scraped": metric.scraped_names} for metric in metrics]))
        return
    table = Table(Column("name", no_wrap=True), "kind", "labels", "what a value is")
    for metric in metrics:
        table.add_row(metric.name, metric.kind, " ".join(map(metric.label_in_words, metric.labels)), metric.help)
    console.print(table)
