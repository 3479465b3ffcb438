"""Traces by OpenTelemetry's SDK; imported only where `trace.export` asks for them.

Whether a step is traced is decided from its trace's id alone (OTEL_TRACES_SAMPLER), hence alike in every process.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.spans import Span, Traces, trace_ids
from shared.telemetry_config import TraceConfig

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import Decision
except ImportError as error:
    raise ConfigError(
        f"trace.export is set and OpenTelemetry isn't installed ({error}): pip install 'subbatch[otel]'"
    ) from None


class OpenTelemetryTraces:
    """Gives spans to an exporter, in a thread of its own."""

    def __init__(self, exporter: Any, *, service: str, instance: str) -> None:
        """Prepare.

        Args:
            exporter: OpenTelemetry's.
            service: What this process is, unless OTEL_SERVICE_NAME says otherwise.
            instance: Which of these it is.
        """
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
        self._ids = _StepIds()
        self._provider = TracerProvider(
            resource=Resource.create(named | {"service.instance.id": instance}), id_generator=self._ids
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("subbatch")

    def record(self, run: str, step: int, spans: list[Span], *, whole: Span | None = None) -> None:
        """As of `Traces`."""
        trace_id, root = trace_ids(run, step)
        if self._provider.sampler.should_sample(None, trace_id, "step").decision is Decision.DROP:
            return
        facts: dict[str, str | int] = {"subbatch.run": run, "subbatch.step": step}
        if whole:
            self._ids.next(trace_id, root)
            self._write(whole, Context(), facts)
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        parent = trace.NonRecordingSpan(trace.SpanContext(trace_id, root, is_remote=True, trace_flags=flags))
        context = trace.set_span_in_context(parent, Context())
        for span in spans:
            self._write(span, context, facts)

    def _write(self, span: Span, context: Any, facts: dict[str, str | int]) -> None:
        attributes = facts | {f"subbatch.{name}": value for name, value in span.attributes.items()}
        written = self._tracer.start_span(span.name, context, start_time=span.start_ns, attributes=attributes)
        written.end(span.end_ns)

    def flush(self) -> None:
        """As of `Traces`."""
        self._provider.force_flush()

    def close(self) -> None:
        """As of `Traces`."""
        self._provider.shutdown()


class _StepIds(RandomIdGenerator):  # type: ignore[misc]  # mypy sees no types of an extra
    """Random ids, but those of the span that stands for a whole step, which others name as their parent."""

    def __init__(self) -> None:
        self._next = threading.local()

    def next(self, trace_id: int, span_id: int) -> None:
        """The next span that this thread begins has these ids."""
        self._next.trace_id, self._next.span_id = trace_id, span_id

    def generate_trace_id(self) -> int:
        """A trace's id."""
        return self._take("trace_id") or super().generate_trace_id()

    def generate_span_id(self) -> int:
        """A span's id."""
        return self._take("span_id") or super().generate_span_id()

    def _take(self, name: str) -> int:
        value: int = getattr(self._next, name, 0)
        setattr(self._next, name, 0)
        return value


def open_traces(config: TraceConfig, *, service: str, instance: str) -> Traces:
    """Where this process's spans go.

    Args:
        config: Its export isn't off.
        service: What this process is.
        instance: Which of these it is.

    Raises:
        ConfigError: a folder that can't be written, or an exporter that doesn't exist.
    """
    exporter = _to_file(config.folder, f"{service}-{instance}") if config.export == "file" else _to_collector()
    return OpenTelemetryTraces(exporter, service=service, instance=instance)


def _to_file(folder: Path, name: str) -> Any:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{name}.jsonl").open("a")
    except OSError as error:
        raise ConfigError(f"trace.folder {folder} can't be written: {error.strerror}") from None
    return ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")


def _to_collector() -> Any:
    """OTLP as the environment says: by gRPC, or by HTTP where the protocol is `http/protobuf`."""
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    elif protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    else:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: use grpc or http/protobuf")
    return OTLPSpanExporter()
