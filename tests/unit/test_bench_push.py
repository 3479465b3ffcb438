"""What a push costs: the account of a thread's time, the sum, and the benchmark itself on a small adapter."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from shared.model import trainable_tensors
from train_client.bench import push
from train_client.bench.push import _compare, make_adapter
from train_client.bench.thread_time import ThreadTime, thread_time


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_thread_that_waits_for_another_is_blocked_and_one_that_computes_is_not() -> None:
    found: dict[str, ThreadTime] = {}
    waits, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun = thread_time()
        waits.set()
        may_go_on.wait()
        found["waiting"] = thread_time() - begun

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert waits.wait(30)
    begun = thread_time()
    burn(0.3)
    computing = thread_time() - begun
    may_go_on.set()
    waiting.join()
    assert found["waiting"].blocked > 0.25
    assert found["waiting"].computing < 0.05
    assert computing.computing >= 0.3
    assert computing.blocked < 0.1
    assert computing.wall == pytest.approx(computing.computing + computing.queueing + computing.blocked)


def test_a_push_costs_its_snapshot_and_what_blocks_longer_than_without_it_but_not_contention() -> None:
    snapshot = ThreadTime(wall=0.5, computing=0.1, queueing=0.375)
    pushing = ThreadTime(wall=4.5, computing=1.35, queueing=2.375)
    alone = ThreadTime(wall=2.0, computing=1.0, queueing=0.75)
    found = _compare(snapshot, pushing, alone, steps=3)
    assert found.snapshot_ms == pytest.approx(125)  # all but queueing
    assert found.blocked_ms == pytest.approx(750 - 250)  # 4.0 - 1.25 - 2.0 with it, 2.0 - 1.0 - 0.75 without
    assert found.cost_ms == pytest.approx(625)
    assert found.queueing_ms == pytest.approx(1625)
    assert found.slower_ms == pytest.approx(250)
    assert found.upload_ms == pytest.approx(4500)


def test_the_adapter_is_phi_2s_with_rank_128_on_attention() -> None:
    tensors = trainable_tensors(make_adapter(torch.device("cpu")))
    assert sum(tensor.nbytes for tensor in tensors.values()) == 32 * 4 * 2 * 128 * 2560 * 4 == 335_544_320
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(128, 2560), (2560, 128)}


def test_the_benchmark_pushes_to_another_process_and_writes_every_push_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_WIDTH": 64, "_LAYERS": 2, "_HEADS": 2, "_RANK": 4, "_QUICK_PUSHES": 3}.items():
        monkeypatch.setattr(push, name, value)
    with (tmp_path / "screen").open("w") as screen:
        push.run(out=tmp_path, quick=True, console=Console(file=screen, width=132))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["bytes"] == 2 * 4 * 2 * 4 * 64 * 4
    assert len(result["pushes"]) == 3
    assert all(row["cost_ms"] == row["snapshot_ms"] + row["blocked_ms"] for row in result["pushes"])
    figures = result["figures"]["cost_ms"]
    costs = sorted(row["cost_ms"] for row in result["pushes"])
    assert [figures["least"], figures["median"], figures["most"]] == costs
    assert "A push costs the training thread" in (tmp_path / "screen").read_text()
