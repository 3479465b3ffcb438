"""The most memory that training holds, without what is only measured between steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from train_client.process import forget_peak_memory, peak_memory


class PeakMemory:
    """Of an accelerator, what PyTorch allocated there; of a processor, what this process had resident."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._most: int | None = None

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Leave out what is held inside, where the system lets us forget it."""
        self._most = self.so_far()
        try:
            yield
        finally:
            self._forget()

    def so_far(self) -> int | None:
        """In bytes; None where the system doesn't say."""
        cuda = self._device.type == "cuda"
        now = torch.cuda.max_memory_allocated(self._device) if cuda else peak_memory("self")
        known = [peak for peak in (now, self._most) if peak is not None]
        return max(known, default=None)

    def _forget(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            forget_peak_memory("self")
