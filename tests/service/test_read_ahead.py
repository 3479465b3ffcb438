"""A trainer that reads ahead of a real server: when it loses patience, what its cursor counts, and that it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from shared.config import ClientConfig, load_config
from shared.errors import UnavailableError
from shared.weights import encode_weights
from tests.service.harness import Job, LiveServer
from tests.support import World, write_config
from train_client import SubbatchPlugin
from train_client.client import SelectorClient
from train_client.train import make_model


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as server:
        yield server


def test_patience_for_a_selection_begins_when_it_is_due(world: World, server: LiveServer) -> None:
    job = Job(world, server.fingerprints)
    opener = SelectorClient(ClientConfig(selector=server.address), run="run", rank=0)
    incarnation, _ = opener.open_run(job.info(), cursor=0, restart=False)
    client = SelectorClient(ClientConfig(selector=server.address, wait_timeout_s=1.0), run="run", rank=0)
    client.attach(incarnation, from_step=0, num_steps=6)
    asked = 0

    def is_due() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:  # by now it has been waited for for longer than patience would last
            opener.push(0, encode_weights(job.weights(0)))
        return False

    assert client.selection(0, is_due=is_due).selection.step == 0
    assert asked >= 5
    assert client.selection(1, is_due=is_due).selection.step == 1
    with pytest.raises(UnavailableError, match=r"no selection for step 2 within \d s.*rank 0"):
        client.selection(2)
    client.close()
    opener.close()


def test_closing_a_client_ends_a_wait_for_a_selection(world: World, server: LiveServer) -> None:
    job = Job(world, server.fingerprints)
    client = SelectorClient(ClientConfig(selector=server.address), run="run", rank=0)
    incarnation, _ = client.open_run(job.info(), cursor=0, restart=False)
    client.attach(incarnation, from_step=0, num_steps=6)
    waits = threading.Event()
    ended: list[UnavailableError] = []

    def wait() -> None:
        def is_due() -> bool:
            waits.set()
            return False

        with pytest.raises(UnavailableError, match="was closed") as caught:
            client.selection(0, is_due=is_due)
        ended.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert waits.wait(30)
    client.close()
    waiting.join(30)
    assert len(ended) == 1


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_loop_that_is_left_has_counted_what_it_trained_and_leaves_no_thread(
    world: World, tmp_path: Path, server: LiveServer, staleness: int
) -> None:
    run = {"num_steps": 6, "staleness": staleness}
    config = load_config(write_config(tmp_path, world, run=run, client={"selector": server.address}))
    accelerator = Accelerator(cpu=True)
    bare = make_model(config, accelerator.device)
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.1)
    model, optimizer = accelerator.prepare(bare, optimizer)
    subbatch = SubbatchPlugin(accelerator, model, config)
    for batch in subbatch:
        with accelerator.accumulate(model):
            accelerator.backward(subbatch.loss(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        if batch.is_last and batch.step == 2:
            break
    assert subbatch.cursor == 3
    left = {thread.name for thread in threading.enumerate() if thread.name.startswith("subbatch-")}
    assert not left
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
