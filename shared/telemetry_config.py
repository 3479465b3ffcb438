"""How both ends tell what they do, metrics apart: traces and log lines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shared.branch import Branch


class TraceConfig(Branch):
    """OpenTelemetry's traces, one for each step of a run, from server and ranks; needs the extra `otel`."""

    # `otlp`: to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; OTEL_* variables decide the rest, such as
    # OTEL_TRACES_SAMPLER. `file`: for each process a file of JSON lines in `folder`.
    export: Literal["off", "otlp", "file"] = "off"
    # Of `file`: where the files go.
    folder: Path = Path("out/traces")


class LogConfig(Branch):
    """How log lines look: for people, or one JSON object each."""

    # `json`: one object a line, with run, step and rank as fields.
    format: Literal["text", "json"] = "text"
