"""A client whose server is stopped, unreachable or slow: every call ends, names who is to blame, leaves no thread."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.config import ClientConfig, ModelConfig
from shared.dataset import Store
from shared.errors import SubbatchError, UnavailableError
from shared.model import base_fingerprint, load_base_model
from shared.records import Fingerprints
from shared.weights import encode_weights
from tests.e2e.slow_proxy import SlowProxy
from tests.service.harness import Job, LiveServer
from tests.support import Server, World, write_config
from train_client.client import SelectorClient
from train_client.push import Pusher

logger = logging.getLogger(__name__)

# No deadline of a call comes before this: whatever ends sooner has noticed that its peer is dead.
LONG_S = 300.0


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as live:
        yield live


@pytest.fixture(scope="module")
def process(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(write_config(tmp_path_factory.mktemp("client"), world)) as server:
        yield server


@pytest.fixture(scope="module")
def job(world: World) -> Job:
    store = Store.open(world.store)
    base = load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu"))
    return Job(world, Fingerprints(store.fingerprint, store.manifest.tokenizer.fingerprint, base_fingerprint(base)))


def client_of(address: str, run: str, **settings: Any) -> SelectorClient:
    options = {"selector": address, "call_timeout_s": LONG_S, "wait_timeout_s": LONG_S, **settings}
    return SelectorClient(ClientConfig.model_validate(options), run=run, rank=0)


def noticed(name: str, action: Callable[[], object], found: dict[str, tuple[float, object]]) -> threading.Thread:
    """Do something that can't succeed, in a thread; what became of it, and when, goes to `found`."""

    def work() -> None:
        began = time.monotonic()
        try:
            outcome: object = action()
        except SubbatchError as error:
            outcome = error
        found[name] = time.monotonic() - began, outcome

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["stopped", "swallowed"])
def test_no_call_waits_for_its_deadline_where_the_peer_is_dead_and_no_thread_outlives_its_client(
    process: Server, job: Job, how: str
) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(SlowProxy(process.address, seed=0, most_s=0.0))
        address = process.address if how == "stopped" else proxy.address
        payload = encode_weights(job.weights(0))
        names = ["opens", "pushes", "closes", "waits", "saves"]
        patience = {"opens": {"connect_timeout_s": 0.5}, "pushes": {"wait_timeout_s": 0.5}}
        patience |= {"closes": {"call_timeout_s": 7.0}, "saves": {"wait_timeout_s": 0.5, "call_timeout_s": 7.0}}
        clients = {name: client_of(address, f"{name}-{how}", **patience.get(name, {})) for name in names}
        for name, client in clients.items():
            opener = client_of(address, f"{name}-{how}")
            incarnation, _ = opener.open_run(job.info(f"{name}-{how}"), cursor=0, restart=False)
            opener.close()
            client.attach(incarnation, from_step=0, num_steps=6)
        broken = threading.Event()
        clients["waits"]._stream._on_broken = broken.set

        if how == "stopped":
            os.kill(process.process.pid, signal.SIGSTOP)
            stack.callback(os.kill, process.process.pid, signal.SIGCONT)
        else:
            proxy.__exit__()
        pusher = Pusher(clients["saves"].push, run="saves")
        pusher.push(0, job.weights(0))
        actions: dict[str, Callable[[], object]] = {
            "opens": lambda: clients["opens"].open_run(job.info(f"opens-{how}"), cursor=0, restart=True),
            "pushes": lambda: clients["pushes"].push(0, payload),
            "closes": clients["closes"].close_run,
            "waits": lambda: broken.wait(LONG_S),
            "saves": lambda: pusher.wait_durable(clients["saves"].wait_for_push(0).is_away),
        }
        found: dict[str, tuple[float, object]] = {}
        threads = [noticed(name, action, found) for name, action in actions.items()]
        for thread in threads:
            thread.join(60)
        logger.info("%s: %s", how, {name: f"{seconds:.1f} s" for name, (seconds, _) in found.items()})
        assert sorted(found) == sorted(names), "a call hangs"
        assert found.pop("waits")[1] is True
        for name, (_, outcome) in found.items():
            assert isinstance(outcome, UnavailableError), (name, outcome)
            assert name in str(outcome)
            assert "look at" in str(outcome) or "start the server" in str(outcome)
        # Everything is let go of while the server is still dead.
        clients["reports"] = client_of(address, "reports")
        clients["reports"].attach(1, from_step=0, num_steps=6)
        clients["reports"].report(1)
        pusher.close()
        closing = [noticed(name, client.close, {}) for name, client in clients.items()]
        for thread in closing:
            thread.join(30)
        pusher.join()
        assert not any(thread.is_alive() for thread in closing)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("subbatch-")]


def test_a_stream_that_a_stopped_server_broke_goes_on_where_it_was(process: Server, job: Job) -> None:
    client = client_of(process.address, "goes-on")
    incarnation, _ = client.open_run(job.info("goes-on"), cursor=0, restart=False)
    client.push(0, encode_weights(job.weights(0)))
    client.attach(incarnation, from_step=0, num_steps=6)
    assert client.selection(0).selection.step == 0
    broken = threading.Event()
    forget = client._stream._on_broken
    client._stream._on_broken = lambda: (forget(), broken.set())  # type: ignore[func-returns-value]
    os.kill(process.process.pid, signal.SIGSTOP)
    client.report(1)
    try:
        assert broken.wait(60)
    finally:
        os.kill(process.process.pid, signal.SIGCONT)
    client.push(1, encode_weights(job.weights(1)))
    assert [client.selection(step).selection.step for step in (1, 2)] == [1, 2]
    client.close()


def test_who_keeps_a_rank_waiting_is_named(server: LiveServer, job: Job) -> None:
    client = client_of(server.address, "blame")
    incarnation, _ = client.open_run(job.info("blame"), cursor=0, restart=False)
    ask = client._liveness.ask
    assert ask(0) == "the server waits for weights version 0 from the trainer, for step 0"
    held = threading.Event()
    server.host._scheduler._worker.submit(held.wait)
    client.push(0, encode_weights(job.weights(0)))
    assert ask(0) == "the server is scoring"
    held.set()
    client.attach(incarnation, from_step=0, num_steps=6)
    assert [client.selection(step).selection.step for step in (0, 1)] == [0, 1]
    assert ask(2) == "the server waits for rank 0, which has completed 0 steps"
    assert ask(1).startswith("the network: the server has selected it")
    assert client._liveness.away_s == 0
    server.stop()
    assert f"network or server: {server.address} can't be reached" in ask(2)
    assert client._liveness.away_s > 0
    server.start()
    client.report(1)
    client.push(1, encode_weights(job.weights(1)))
    assert client.selection(2).selection.step == 2
    assert client._liveness.away_s == 0, "a selection that arrives is an answer"
    client.close()


def test_a_wait_says_in_the_log_what_for_since_when_and_who_is_to_blame(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("train_client.waiting.LOG_EVERY_S", 0.2)
    client = client_of(server.address, "logs", wait_timeout_s=1.5)
    incarnation, _ = client.open_run(job.info("logs"), cursor=0, restart=False)
    client.attach(incarnation, from_step=0, num_steps=6)
    with pytest.raises(UnavailableError, match=r"run 'logs', step 0: no selection .*weights version 0.*checkpoint"):
        client.selection(0)
    lines = [r.getMessage() for r in caplog.records if r.name == "train_client.waiting"]
    assert lines
    assert all("run 'logs', step 0: waiting for selection for step 0 since " in line for line in lines)
    assert all(line.endswith("the server waits for weights version 0 from the trainer, for step 0") for line in lines)
    client.close()
