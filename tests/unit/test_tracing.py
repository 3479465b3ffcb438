"""Which steps are traced, decided alike by processes that know only a run's name and the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.spans import Span, trace_ids
from shared.telemetry_config import TraceConfig
from shared.tracing import open_traces


def traced(folder: Path, service: str, *, whole: bool) -> set[int]:
    traces = open_traces(TraceConfig(export="file", folder=folder), service=service, instance="1")
    for step in range(100):
        traces.record("run", step, [Span("a", 1, 2)], whole=Span("step", 0, 3) if whole else None)
    traces.close()
    lines = (folder / f"{service}-1.jsonl").read_text().splitlines()
    return {json.loads(line)["attributes"]["subbatch.step"] for line in lines}


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_a_share_of_the_steps_is_traced_and_every_process_chooses_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.3")
    on_server, on_rank = traced(tmp_path, "selector", whole=False), traced(tmp_path, "trainer", whole=True)
    assert on_server == on_rank
    # The ratio sampler looks at the lower 64 bits of an id.
    assert on_server == {step for step in range(100) if trace_ids("run", step)[0] % 2**64 < 0.3 * 2**64}


def test_an_exporter_that_doesnt_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "thrift")
    with pytest.raises(ConfigError, match="thrift"):
        open_traces(TraceConfig(export="otlp"), service="selector", instance="1")
