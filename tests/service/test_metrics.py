"""What a server tells Prometheus, against what its journal holds and what was sent to it."""

from __future__ import annotations

import asyncio
import collections
import datetime
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from selector_server import metrics as m
from selector_server.readiness import SERVICE, why_not_writable
from selector_server.security.certs import make_certificates
from shared.config import MetricsConfig
from shared.errors import ConfigError
from shared.metric import MOST_SOURCES, OTHER_SOURCES
from shared.sampler import draw_large_batch
from shared.scrape_port import Page, Reader, ScrapePort
from shared.source_labels import SourceLabels
from shared.transport import open_channel
from tests.scraping import get, scrape
from tests.service.harness import Job, LiveServer
from tests.service.trainers import ArithmeticTrainer
from tests.support import World

STEPS = 8


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal", metrics={"port": 0}) as server:
        yield server


def test_metrics_tell_what_was_drawn_picked_pushed_and_made_durable(server: LiveServer, world: World) -> None:
    job = Job(world, server.fingerprints)
    info = job.info("measured", num_steps=STEPS)
    with ArithmeticTrainer(server, job, info) as trainer:
        trainer.train(5)
        trainer.source.state()  # every push is durable, so that step 5 can be selected
        trainer.source.selection(5)
        found = scrape(server.metrics_address)

    sizes, names = server.store.source_rows, server.store.source_names
    drawn, picked, tokens = collections.Counter(), collections.Counter(), 0
    for step in range(6):
        batch = draw_large_batch(sizes, info.selection, seed=info.seed, step=step)
        drawn.update(names[source] for source in server.store.sources_of(batch))
        tokens += int(server.store.lengths(batch).sum())
    for step in range(5):
        picked.update(names[source] for source in trainer.selections[step].source)
    assert found.by("source", m.SOURCE_DRAWN.name) == {name: drawn[name] for name in names}
    assert sum(found.by("source", m.SOURCE_PICKED.name).values()) == 6 * 4
    assert all(found.value(m.SOURCE_PICKED.name, source=name) >= picked[name] for name in names)
    assert found.value(m.TOKENS_DRAWN.name) == tokens
    assert found.value(m.ROWS_DRAWN.name, run="measured") == 6 * 8
    assert found.value(m.SELECTIONS.name) == found.value(m.NEXT_STEP.name) == 6
    assert found.value("subbatch_selector_selection_seconds_count") == 6
    assert found.value("subbatch_selector_selection_seconds_bucket", le="+Inf") == 6
    phases = found.by("phase", m.PHASE_SECONDS.name)
    assert set(phases) == set(m.PHASES)
    assert sum(phases.values()) == pytest.approx(found.value("subbatch_selector_selection_seconds_sum"))
    # S = 1: a selection is made with weights one step old; the version of step 0's is pushed, too.
    assert found.value(m.STALENESS.name) == 1
    assert found.value(m.PUSHES.name) == 6
    assert found.value(m.PUSH_BYTES.name) >= 6 * sum(4 * tensor.numel() for tensor in job.weights(0).values())
    assert found.value(m.SENT.name) == 6
    assert found.value(m.JOURNAL_BYTES.name) == (server.host.folder / "measured" / "journal.bin").stat().st_size
    assert found.value(m.RANK_SILENT.name, rank="0") == 0
    assert found.value(m.OPENINGS.name) == found.value(m.OPEN_RUNS.name) == found.value(m.READY.name) == 1
    assert found.value("process_resident_memory_bytes") > 1e6
    states = found.by("state", m.STATE.name)
    assert sum(states.values()) == 1
    assert set(states) == set(m.STATES)


def test_every_metric_that_is_exported_is_listed_with_its_kind(server: LiveServer, world: World) -> None:
    job = Job(world, server.fingerprints)
    with ArithmeticTrainer(server, job, job.info()) as trainer:
        trainer.train(2)
        found = scrape(server.metrics_address)
    listed = {name: metric.kind for metric in m.METRICS for name in metric.scraped_names}
    exported = {name for name in found.names if name.startswith("subbatch")}
    assert {name: found.kinds[name] for name in exported} == {name: listed[name] for name in exported}
    # A processor has no memory of its own; no call was refused.
    missing = {name for name in listed if name not in exported and "device" not in name}
    assert missing <= {m.REFUSED_CALLS.name}


def test_a_run_that_lacks_weights_is_told_from_one_that_is_far_ahead_and_goes_when_it_is_closed(
    server: LiveServer, world: World
) -> None:
    job = Job(world, server.fingerprints)
    with ArithmeticTrainer(server, job, job.info("ahead", num_steps=STEPS, pick="random")) as trainer:
        trainer.source.selection(0)
        ahead = scrape(server.metrics_address)
        while ahead.value(m.STATE.name, run="ahead", state="rank") != 1:
            ahead = scrape(server.metrics_address)
        assert ahead.value(m.STEPS_AHEAD.name, run="ahead") == ahead.value(m.LOOKAHEAD.name, run="ahead") + 1
        with ArithmeticTrainer(server, job, job.info("starved", num_steps=STEPS)) as starved:
            starved.source.selection(0)
            starved.source._client.report(1)  # step 0 is trained, and the weights after it never come
            found = scrape(server.metrics_address)
            while found.value(m.STATE.name, run="starved", state="weights") != 1:
                found = scrape(server.metrics_address)
            assert found.value(m.OPEN_RUNS.name) == 2
            starved.source.finish()
        later = scrape(server.metrics_address)
    assert set(later.by("run", m.NEXT_STEP.name)) == {"ahead"}
    assert later.value(m.STATE_SECONDS.name, run="ahead", state="rank") > 0


def test_rewinds_and_refusals_are_counted(server: LiveServer, world: World) -> None:
    job = Job(world, server.fingerprints)
    trainer = ArithmeticTrainer(server, job, job.info(num_steps=STEPS))
    with trainer:
        trainer.train(2)
        checkpoint = trainer.state()
        trainer.train(3)
    again = ArithmeticTrainer(server, job, job.info(num_steps=STEPS))
    again.load(checkpoint)
    before = scrape(server.metrics_address).by("method", m.REFUSED_CALLS.name).get("OpenRun", 0)
    with again:
        other = ArithmeticTrainer(server, job, job.info(num_steps=STEPS))
        with pytest.raises(Exception, match="exists"):
            other.open()
        other.source.close()
        found = scrape(server.metrics_address)
    assert found.value(m.OPENINGS.name) == 2
    assert found.value(m.REWOUND.name) >= 1
    assert found.value(m.REFUSED_CALLS.name, method="OpenRun", code="ALREADY_EXISTS") == before + 1


def test_health_is_alive_and_not_ready_while_the_journal_cant_be_written(server: LiveServer) -> None:
    def asked(service: str) -> int:
        with open_channel(server.address, None) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status

    states = health_pb2.HealthCheckResponse
    assert (asked(""), asked(SERVICE)) == (states.SERVING, states.SERVING)
    assert get(server.metrics_address, "/readyz") == (200, "ready\n")
    folder = server.host.folder
    folder.rename(folder.with_name("away"))
    asyncio.run_coroutine_threadsafe(server.readiness.look(), server._loop).result(30)
    assert (asked(""), asked(SERVICE)) == (states.SERVING, states.NOT_SERVING)
    status, why = get(server.metrics_address, "/readyz")
    assert (status, str(folder) in why) == (503, True)
    assert get(server.metrics_address, "/healthz") == (200, "alive\n")
    folder.with_name("away").rename(folder)
    asyncio.run_coroutine_threadsafe(server.readiness.look(), server._loop).result(30)
    assert asked(SERVICE) == states.SERVING
    assert why_not_writable(folder) == ""


def test_who_may_scrape_are_an_admin_and_metrics_tokens_alone(world: World, tmp_path: Path) -> None:
    tokens = {name: f"{name}-0123456789abcdef" for name in ("admin", "alice", "metrics")}
    (tmp_path / "tokens").write_text("".join(f"{name}:{token}\n" for name, token in tokens.items()))
    with LiveServer(world, tmp_path / "journal", token_file=tmp_path / "tokens", metrics={"port": 0}) as server:
        found = {name: get(server.metrics_address, "/metrics", token=token)[0] for name, token in tokens.items()}
        assert found == {"admin": 200, "alice": 401, "metrics": 200}
        assert get(server.metrics_address, "/metrics")[0] == 401
        assert get(server.metrics_address, "/readyz")[0] == 200
        _, text = get(server.metrics_address, "/metrics", token=tokens["admin"])
        assert not any(token in text for token in tokens.values())


def test_metrics_come_by_https_and_a_caller_that_says_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", [], days=1, now=datetime.datetime.now(datetime.timezone.utc))
    tls = {"certificate": tmp_path / "certs/server.pem", "key": tmp_path / "certs/server.key"}
    config = MetricsConfig.model_validate({"port": 0, "tls": tls})
    port = ScrapePort(config, {"/metrics": lambda headers: Page(b"x 1\n")}, Reader(), branch="server.metrics")
    host, _, number = port.address.rpartition(":")
    with socket.create_connection((host, int(number))):
        assert get(port.address, "/metrics", ca=tmp_path / "certs/ca.pem") == (200, "x 1\n")
        assert get(port.address, "/rows", ca=tmp_path / "certs/ca.pem")[0] == 404
    port.close()


@pytest.mark.parametrize(
    ("settings", "tokens", "missing"),
    [
        ({}, True, r"server\.metrics\.tls"),
        ({"tls": {"certificate": "server.pem", "key": "server.key"}}, False, r"server\.metrics\.token_file"),
    ],
)
def test_a_port_that_other_machines_reach_needs_encryption_and_a_reader(
    settings: dict[str, object], tokens: bool, missing: str
) -> None:
    config = MetricsConfig.model_validate({"host": "0.0.0.0", "port": 0, **settings})
    with pytest.raises(ConfigError, match=missing):
        ScrapePort(config, {}, Reader(bool if tokens else None), branch="server.metrics")


def test_many_sources_share_a_label() -> None:
    names, rows = [f"s{number}" for number in range(100)], list(range(1, 101))
    labels = SourceLabels(names, rows).label(np.array(rows))
    assert len(labels) == MOST_SOURCES + 1
    assert labels["s99"] == 100
    assert labels[OTHER_SOURCES] == sum(range(1, 37))
