"""Several scoring processes are one selector: they select what one does, for any number of runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from selector_server.live.ask import ask
from selector_server.live.status import status_table
from shared.config import ClientConfig
from shared.errors import SelectionError
from shared.model import trainable_tensors
from shared.records import RunInfo, Selection
from shared.weights import encode_weights, tensor_specs
from shared.wire import same_selection
from tests.service.harness import Job, LiveServer
from tests.service.scaled import ForkedScaledServer
from tests.support import World, write_config
from train_client.client import SelectorClient

STEPS = 3
FAILING_WORKER = "tests.service.failing_worker"


def connect(address: str, run: str) -> SelectorClient:
    options = {"selector": address, "wait_timeout_s": 60.0, "connect_timeout_s": 5.0}
    return SelectorClient(ClientConfig.model_validate(options), run=run, rank=0)


def selections(address: str, info: RunInfo, weights: Callable[[int], dict[str, torch.Tensor]]) -> list[Selection]:
    """What a trainer of `info` is given that pushes `weights(version)`."""
    with contextlib.closing(connect(address, info.name)) as client:
        incarnation, missing = client.open_run(info, cursor=0, restart=False)
        for version in missing:
            client.push(version, encode_weights(weights(version)))
        client.attach(incarnation, from_step=0, num_steps=STEPS)
        found = []
        for step in range(STEPS):
            found.append(client.selection(step).selection)
            if info.timing.steps_using(step + 1):
                client.push(step + 1, encode_weights(weights(step + 1)))
            client.report(step + 1)
        client.close_run()
        return found


def assert_same(found: list[Selection], expected: list[Selection]) -> None:
    assert len(found) == len(expected) == STEPS
    assert all(same_selection(left, right) for left, right in zip(found, expected, strict=True))


def test_two_processes_select_bit_for_bit_what_one_does_for_each_of_several_runs(world: World, tmp_path: Path) -> None:
    assert torch.get_num_threads() == 1  # as the processes have
    presets = {
        "paper": {"preset": "paper", "num_probes": 2, "criterion": "weight_grad", "soft_labels": True},
        "matched": {"preset": "matched"},
        "paper_exact": {"preset": "paper_exact"},
        "hardest": {"preset": "hardest"},
        "random": {"pick": "random"},
    }
    with (
        LiveServer(world, tmp_path / "alone", max_runs=8) as alone,
        ForkedScaledServer(write_config(tmp_path, world), module=FAILING_WORKER) as scaled,
    ):
        job = Job(world, alone.fingerprints)
        # More micro-batches than processes, of different sizes.
        infos = {
            name: job.info(name, num_steps=STEPS, large_batch_size=24, score_tokens=300, **selection)
            for name, selection in presets.items()
        }
        timing = dataclasses.replace(infos["random"].timing, scores=False)
        infos["random"] = dataclasses.replace(infos["random"], timing=timing)
        base = trainable_tensors(alone.model.requires_grad_())
        full = dataclasses.replace(infos["paper_exact"], adapter_json="", trainable=tensor_specs(base))
        alone.model.requires_grad_(False)
        trainers = [(info, job.weights) for info in infos.values()]
        trainers.append((dataclasses.replace(full, name="full"), moved(base)))

        bad = dataclasses.replace(infos["paper"], name="bad")  # the second process can't score it
        message = rf"scoring process 1 \(pid {scaled.pid(1)}\) couldn't score: no luck"
        with pytest.raises(SelectionError, match=message):
            selections(scaled.address, bad, job.weights)

        with ThreadPoolExecutor(len(trainers)) as threads:
            calls = [threads.submit(selections, scaled.address, info, weights) for info, weights in trainers]
            for (info, weights), call in zip(trainers, calls, strict=True):
                expected = selections(alone.address, info, weights)
                assert len(expected) == STEPS
                for found, wanted in zip(call.result(), expected, strict=True):
                    assert same_selection(found, wanted), info.name
        table = status_table(scaled.address, ask(ClientConfig(selector=scaled.address)))
        column = next(column for column in table.columns if column.header == "scoring processes")
        assert set(column.cells) == {"2"}
        assert scaled.stop() == 0
        assert "selector_server.server: stopped" in scaled.text()
        assert "has died" not in scaled.text()


def moved(base: dict[str, torch.Tensor]) -> Callable[[int], dict[str, torch.Tensor]]:
    """Different weights for every version, near the base's."""

    def weights(version: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(version)
        return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}

    return weights
