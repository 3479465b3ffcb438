"""Start a selector server: check everything that can be wrong, bind, load, resume runs, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import torch
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from selector_server.engine import require_vocabulary
from selector_server.host import Host
from selector_server.journal import Journal
from selector_server.listening import listen
from selector_server.probes import probe_server
from selector_server.readiness import SERVICE, Readiness
from selector_server.run_engine import build_engine
from selector_server.scale_out.engine import TeamEngines, require_same_everywhere
from selector_server.scale_out.team import Team
from selector_server.security.guard import GuardedService
from selector_server.service import SelectorService
from shared.config import Config, ServerConfig
from shared.dataset import Store
from shared.errors import ConfigError, FingerprintError, JournalError
from shared.model import base_fingerprint, load_base_model
from shared.pb.v1 import selector_pb2_grpc
from shared.records import Fingerprints
from shared.scrape_port import ScrapePort
from shared.spans import Traces
from shared.telemetry_config import TraceConfig
from shared.tokenizer import load_tokenizer, tokenizer_fingerprint

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 5.0


async def serve(
    config: Config, device: torch.device, *, on_ready: Callable[[str], None], team: Team | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; then finish the selection at hand, so that its journal record is whole.

    Args:
        config: The server's, model's and data's branches are used.
        device: Where this process scores.
        on_ready: Called with `host:port` once runs can be opened.
        team: Other processes that score, too; they end with this one.

    Raises:
        SubbatchError: anything that keeps the server from serving, before a trainer depends on it.
    """
    if not config.model.path:
        raise ConfigError("model.path is not set: give a hub id, a folder or a .gguf file")
    if config.data.store is None:
        raise ConfigError("data.store is not set: give the folder that `selector-server prepare` wrote")
    store = Store.open(config.data.store)
    tokenizer = tokenizer_fingerprint(load_tokenizer(config.model.path, config.model.revision))
    if tokenizer != store.manifest.tokenizer.fingerprint:
        raise FingerprintError(
            f"tokenizer of model.path {config.model.path} is {tokenizer}, store {config.data.store} was prepared with "
            f"{store.manifest.tokenizer.fingerprint}: prepare the store with this model's tokenizer"
        )
    server, address = listen(config.server)
    with _sole_owner(config.server.journal), _traces(config.trace) as traces:
        model = load_base_model(config.model, device)
        require_vocabulary(model, store)
        fingerprints = Fingerprints(store.fingerprint, tokenizer, base_fingerprint(model))
        if team:
            require_same_everywhere(team, fingerprints)
        host = Host(
            store,
            fingerprints,
            config.server.journal,
            build=TeamEngines(team, model, store).build if team else partial(build_engine, model, store),
            max_runs=config.server.max_runs,
            rank_lease_s=config.server.rank_lease_s,
            scoring_processes=team.size if team else 1,
            open_journal=partial(
                Journal, keep_scores=config.server.keep_scores, retain_weights=config.server.retain_weights
            ),
            traces=traces,
        )
        add_service(server, host, config.server)
        readiness = Readiness(config.server.journal)
        add_standard_services(server, readiness)
        probes = probe_server(config.server, readiness.servicer)
        metrics = _metrics_port(config.server, host, readiness, store, device, address=address)
        await readiness.begin()
        await server.start()
        if probes:
            await probes.start()
        logger.info(
            "serving %d rows of %d sources on %s, with %d scoring processes",
            len(store), len(store.source_rows), address, team.size if team else 1,
        )  # fmt: skip
        on_ready(address)
        scheduler = asyncio.create_task(host.schedule())
        looking = asyncio.create_task(readiness.keep_looking())
        try:
            await _until_stopped(scheduler)
        finally:
            looking.cancel()
            await readiness.end()
            await host.stop()
            await scheduler
            await server.stop(_DRAIN_SECONDS)
            if probes:
                await probes.stop(0)
            if metrics:
                await asyncio.to_thread(metrics.close)
            host.close()
        if team:
            team.close()
    logger.info("stopped")


def add_service(server: grpc.aio.Server, host: Host, config: ServerConfig) -> None:
    """Let a server serve a host's runs, to those who may and within its limits."""
    service = SelectorService(host, max_weights_bytes=config.max_weights_bytes, sends_rows=config.send_rows)
    guarded = GuardedService(service, host, config.limits)
    selector_pb2_grpc.add_SelectorServiceServicer_to_server(guarded, server)


@contextlib.contextmanager
def _sole_owner(folder: Path) -> Iterator[None]:
    """Hold the journal folder against a second server.

    Raises:
        JournalError: another server holds it, or nothing can be written there.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(folder / "lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"journal folder {folder} belongs to a server that is running: stop it, or choose another "
                "server.journal"
            ) from None
        except OSError as error:
            raise JournalError(
                f"journal folder {folder} can't be used: {error}: make it one that this server may write to, or choose "
                "another server.journal"
            ) from None
        yield


def add_standard_services(server: grpc.aio.Server, readiness: Readiness) -> None:
    """Health and reflection."""
    health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def _metrics_port(
    config: ServerConfig, host: Host, readiness: Readiness, store: Store, device: torch.device, *, address: str
) -> ScrapePort | None:
    """Where metrics and the web page are read, if they are to be; only then is Prometheus's library imported."""
    if config.metrics.port is None:
        return None
    from selector_server.metrics_port import open_metrics_port

    return open_metrics_port(config, host, readiness, store, device, address=address)


@contextlib.contextmanager
def _traces(config: TraceConfig) -> Iterator[Traces | None]:
    """Where traces go, if anywhere; only then is OpenTelemetry imported."""
    if config.export == "off":
        yield None
        return
    from shared.tracing import open_traces

    with contextlib.closing(open_traces(config, service="selector", instance=str(os.getpid()))) as traces:
        yield traces


async def _until_stopped(scheduler: asyncio.Task[Any]) -> None:
    """Return at SIGTERM or SIGINT; raise where the scheduler breaks."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, scheduler}, return_when=asyncio.FIRST_COMPLETED)
    if scheduler.done():
        await scheduler
