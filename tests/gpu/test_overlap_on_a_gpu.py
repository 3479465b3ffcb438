"""What overlaps on a GPU changes nothing: snapshots while the weights move on, batches that arrive meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from shared.weights import encode_weights
from train_client.push import Pusher
from train_client.read_ahead import ReadAhead
from train_client.snapshot import Snapshot
from train_client.staging import Staged, Staging

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device() -> torch.device:
    assert torch.cuda.is_available(), "these tests need a CUDA device; without one leave them out with -m 'not gpu'"
    return torch.device("cuda", torch.cuda.current_device())


def keep_busy(device: torch.device) -> None:
    """Work that is still queued on the GPU when this returns."""
    a = torch.ones(4096, 4096, device=device)
    for _ in range(40):
        a = a @ a * 1e-4


def test_a_snapshot_is_of_the_moment_it_was_asked_for_though_the_gpu_is_behind_and_the_weights_move_on(
    device: torch.device,
) -> None:
    trained = {f"w{n}": torch.zeros(1024, 1024, device=device) for n in range(64)}
    snapshot = Snapshot(trained)
    for version in range(1, 6):
        keep_busy(device)
        for tensor in trained.values():
            tensor.add_(1.0)  # the optimizer's step, not done yet when the snapshot is asked for
        snapshot.take(trained)
        snapshot.before_overwriting()
        for tensor in trained.values():
            tensor.add_(1000.0)
        expected = {name: torch.full((1024, 1024), float(version)) for name in trained}
        assert bytes(snapshot.payload()) == encode_weights(expected)
        for tensor in trained.values():
            tensor.sub_(1000.0)


def test_pushes_from_a_gpu_arrive_as_they_were_trained(device: torch.device) -> None:
    sent: dict[int, bytes] = {}
    pusher = Pusher(lambda version, payload: sent.__setitem__(version, bytes(payload)), run="run")
    trained = {
        "a": torch.zeros(512, 1024, device=device),
        "b": torch.zeros(1024, 512, device=device, dtype=torch.bfloat16),
    }
    for version in range(12):
        keep_busy(device)
        pusher.before_overwriting()
        for tensor in trained.values():
            tensor.fill_(version)
        pusher.push(version, trained)
    pusher.wait_durable()
    pusher.close()
    for version in range(12):
        expected = {name: torch.full_like(tensor, version, device="cpu") for name, tensor in trained.items()}
        assert sent[version] == encode_weights(expected)


@pytest.mark.parametrize("late", ["copies", "use"])
def test_batches_staged_by_another_thread_are_whole_when_they_are_used(device: torch.device, late: str) -> None:
    staging = Staging(device)
    threads = set()

    def make(number: int) -> tuple[list[Tensor], Staged]:
        threads.add(threading.current_thread())
        with staging.copying() as staged:
            if late == "copies":
                keep_busy(device)
            tensors = [staging.copy(torch.full((1 << 22,), number * 10 + part)) for part in range(4)]
        return tensors, staged

    sums = []
    ahead = ReadAhead(make, range(24), name="test")
    for _ in range(24):
        tensors, staged = ahead.take()
        staging.hand_over(staged, tensors)
        if late == "use":  # their memory is given back to the allocator long before the GPU reads them
            keep_busy(device)
        sums.append(torch.stack([tensor.double().mean() for tensor in tensors]))
        del tensors, staged
    ahead.join()
    assert threading.current_thread() not in threads
    assert torch.stack(sums).tolist() == [[number * 10.0 + part for part in range(4)] for number in range(24)]
