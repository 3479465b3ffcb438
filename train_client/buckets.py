"""DDP's buckets of gradients, laid out once and for all before the first step of a process.

DDP lays them out again after its first backward pass, in the order in which gradients were ready. Where in a bucket a
gradient is decides in which order the ranks' shares of it are added, and with it, from three ranks on, the last bit of
the sum. So a job that is resumed, whose first step is another than the first of the run, would not go on exactly as one
that wasn't. A backward pass over nothing comes first instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class _EveryParameter(torch.nn.Module):  # type: ignore[misc]
    """Depends on all that is trained, and on no row."""

    def __init__(self, trained: list[Tensor]) -> None:
        super().__init__()
        self._trained = trained

    def forward(self) -> Tensor:
        return torch.stack([0.0 * parameter.sum().float() for parameter in self._trained]).sum()


def settle_buckets(model: Any) -> None:
    """Let a model under DDP have its final buckets from its next forward pass on; all ranks call it together.

    Neither weights, gradients nor random generators change.

    Args:
        model: Prepared; one that isn't under DDP has no such buckets.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    module, model.module = model.module, _EveryParameter(trained)
    # The first of several micro-batches isn't meant to be summed over the ranks; and there are no buffers to be sent.
    sums, model.require_backward_grad_sync = model.require_backward_grad_sync, True
    sends, model.broadcast_buffers = model.broadcast_buffers, False
    try:
        model().backward()
    finally:
        model.module, model.require_backward_grad_sync, model.broadcast_buffers = module, sums, sends
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
