"""Batches on their way to the device: to a GPU over pinned memory and a stream of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Staged:
    """A group of copies; `done` is the event behind the last of them, None where copies don't outlast their call."""

    done: Any = None


class Staging:
    """Copies from any one thread, for use by another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def copying(self) -> Iterator[Staged]:
        """A group of copies, begun inside."""
        staged = Staged()
        if self._stream is None:
            yield staged
            return
        with torch.cuda.stream(self._stream):
            yield staged
            staged.done = self._stream.record_event()

    def copy(self, tensor: Tensor) -> Tensor:
        """A CPU tensor on the device, where it is usable after `hand_over`; call it inside `copying`."""
        if self._stream is None:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def hand_over(self, staged: Staged, tensors: Sequence[Tensor]) -> None:
        """Make what the calling thread does next on the GPU wait for the copies; the thread itself doesn't."""
        if self._stream is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(staged.done)
        for tensor in tensors:
            # Their memory belongs to the other stream, which may use it again only when this one is done with them.
            tensor.record_stream(stream)
