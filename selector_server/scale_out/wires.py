"""Small JSON and tensors between the scoring processes, over a gloo group; nothing that could run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

FloatArray = npt.NDArray[np.float64]


class Wires:
    """The members of one group. All of it blocks, and raises RuntimeError where another member is lost."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def say(self, message: Mapping[str, Any]) -> None:
        """From rank 0 to all; the others `listen`."""
        data = _to_tensor(message)
        dist.broadcast(torch.tensor([len(data)]), src=0, group=self._group)
        dist.broadcast(data, src=0, group=self._group)

    def listen(self) -> dict[str, Any]:
        """What rank 0 says."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, src=0, group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, src=0, group=self._group)
        return _from_tensor(data)

    def share(self, tensor: torch.Tensor) -> None:
        """Bring rank 0's values, on the CPU and contiguous, into everybody's tensor of that shape and dtype."""
        if tensor.numel():
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self._group)

    def report(self, message: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> None:
        """A message with arrays to rank 0."""
        shapes = {name: array.shape for name, array in arrays.items()}
        data = _to_tensor({"message": message, "shapes": shapes})
        dist.send(torch.tensor([len(data)]), dst=0, group=self._group)
        dist.send(data, dst=0, group=self._group)
        for array in arrays.values():
            dist.send(torch.from_numpy(array), dst=0, group=self._group)

    def collect(self, rank: int) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """What a rank reports."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, src=rank, group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, src=rank, group=self._group)
        told = _from_tensor(data)
        arrays = {name: np.empty(shape) for name, shape in told["shapes"].items()}
        for array in arrays.values():
            dist.recv(torch.from_numpy(array), src=rank, group=self._group)
        return told["message"], arrays


def _to_tensor(message: Mapping[str, Any]) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)


def _from_tensor(data: torch.Tensor) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(data.numpy().tobytes())
    return message
