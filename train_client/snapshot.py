"""The trained weights as they are between two steps: one copy, into host memory that is used again and again.

The memory is laid out as the payload that is sent, so that nothing is copied or allocated afterwards. From a GPU the
copy runs on a stream of its own while the next step's forward and backward do; only what changes the weights waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shared.errors import WeightsError
from shared.weights import empty_payload, specs_in, tensor_specs


class Snapshot:
    """Host memory for one version of some tensors, pinned where they are on a GPU."""

    def __init__(self, tensors: Mapping[str, Tensor], *, dtype: str | None = None) -> None:
        """Allocate; nothing is copied yet.

        Args:
            tensors: What will be copied.
            dtype: What it is cast to; None keeps each tensor's own.

        Raises:
            WeightsError: a dtype that can't be sent, or tensors on several devices.
        """
        self._specs = tensor_specs(tensors)
        devices = {tensor.device for tensor in tensors.values()}
        if len(devices) > 1:
            raise WeightsError(f"what is trained lies on several devices, {devices}: give each rank one device")
        (device,) = devices
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: Any = torch.cuda.Event(blocking=True) if self._stream else None
        payload, places = empty_payload(specs_in(self._specs, dtype), pin_memory=self._stream is not None)
        self._payload, self._places = memoryview(payload.numpy()), list(places.values())

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors, or begin to where they are on a GPU: they may not change before `before_overwriting`.

        Raises:
            WeightsError: other tensors than the memory was allocated for.
        """
        if (specs := tensor_specs(tensors)) != self._specs:
            changed = sorted({spec.name for spec in set(specs) ^ set(self._specs)})
            raise WeightsError(
                f"what is trained has changed since the run was opened, {changed[:3]} of {len(changed)} tensors: train "
                "the same parameters to the end, or open another run"
            )
        # One call for all tensors: the interpreter lock is let go once, not once for each of them.
        if self._stream is None:
            torch._foreach_copy_(self._places, list(tensors.values()))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(self._places, list(tensors.values()), non_blocking=True)
            self._copied.record(self._stream)
        for tensor in tensors.values():
            tensor.record_stream(self._stream)

    def before_overwriting(self) -> None:
        """Let the GPU finish copying before it does what is asked of it next; the calling thread doesn't wait."""
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied)

    def payload(self) -> memoryview:
        """What `shared.weights.encode_weights` gives for the tensors as cast, where it lies; waits for the copying."""
        if self._copied:
            self._copied.synchronize()
        return self._payload
