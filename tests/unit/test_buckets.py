from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.forked import FORKS
from train_client.buckets import settle_buckets

RANKS = 3


def job(rank: int, folder: Path, is_settled: bool) -> None:
    """Four steps of SGD; then the third once more, by a model made anew from the weights before it, as if resumed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS
    )
    weights = []
    model = start(None, is_settled)
    for step in range(4):
        weights.append(copy.deepcopy(model.module.state_dict()))
        train(model, step, rank)
    resumed = start(weights[2], is_settled)
    train(resumed, 2, rank)
    if rank == 0:
        torch.save([weights[3], resumed.module.state_dict()], folder / "weights.pt")
    del model, resumed  # a DDP model that is freed after its process group can wait for ever
    torch.distributed.destroy_process_group()


def start(weights: dict[str, torch.Tensor] | None, is_settled: bool) -> DistributedDataParallel:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(37, 37) for _ in range(5)))
    layers[1].requires_grad_(False)
    layers.register_buffer("step_size", torch.tensor(0.1))
    if weights:
        layers.load_state_dict(weights)
    model = DistributedDataParallel(layers)
    if is_settled:
        settle_buckets(layers)
        with model.no_sync():
            settle_buckets(model)
        assert model.module is layers
        assert all(parameter.grad is None for parameter in layers.parameters())
    return model


def train(model: DistributedDataParallel, step: int, rank: int) -> None:
    rows = torch.randn(8, 37, generator=torch.Generator().manual_seed(100 * step + rank))
    model(rows).pow(2).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("is_settled", [True, False])
def test_the_first_step_of_a_resumed_job_of_three_ranks_is_that_of_one_that_goes_on(
    tmp_path: Path, is_settled: bool
) -> None:
    processes = [FORKS.Process(target=job, args=(rank, tmp_path, is_settled)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * RANKS
    went_on, resumed = torch.load(tmp_path / "weights.pt")
    difference = max((went_on[name] - resumed[name]).abs().max().item() for name in went_on)
    # What is mended here is there: without, DDP adds the ranks' shares in another order.
    assert (difference == 0.0) is is_settled
    assert difference < 1e-6
