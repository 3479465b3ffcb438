"""Trainable tensors ↔ one safetensors payload, cut into chunks, and the checks on the way in.

The format can't run code, its header is bounded, and names, shapes, dtypes and values are all checked before a tensor
reaches a model. Torch is imported only where tensors are built.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from shared.errors import WeightsError
from shared.records import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 1 << 20


_SAFETENSORS_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Safetensors lays the tensors out in this order, wider ones first, so that each stays aligned; within a dtype by name.
_LAYOUT_ORDER = tuple(_SAFETENSORS_DTYPES)


def empty_payload(specs: Sequence[TensorSpec], *, pin_memory: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Memory for one safetensors payload: its header is written, its tensors are not.

    Args:
        specs: The tensors that the payload is for, in any order.
        pin_memory: Whether a GPU shall be able to copy into it by itself.

    Returns:
        The payload, uint8 [num_bytes], and the place of each tensor in it, by name in the order of `specs`: filling
        them completes the payload, byte for byte what `safetensors.torch.save` gives.

    Raises:
        WeightsError: a dtype that a payload can't hold.
    """
    import torch

    for spec in specs:
        if spec.dtype not in _SAFETENSORS_DTYPES:
            raise WeightsError(
                f"weights {spec.name} are {spec.dtype}, only {', '.join(_SAFETENSORS_DTYPES)} can be sent: "
                "train in one of these"
            )
    header, places = {}, {}
    end = 0
    for spec in sorted(specs, key=lambda spec: (_LAYOUT_ORDER.index(spec.dtype), spec.name)):
        start, end = end, end + math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize
        header[spec.name] = {
            "dtype": _SAFETENSORS_DTYPES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": (start, end),
        }
        places[spec.name] = start, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    payload = torch.empty(len(prefix) + end, dtype=torch.uint8, pin_memory=pin_memory)
    payload[: len(prefix)] = torch.frombuffer(bytearray(prefix), dtype=torch.uint8)
    data = payload[len(prefix) :]
    return payload, {
        spec.name: data[slice(*places[spec.name])].view(getattr(torch, spec.dtype)).view(spec.shape) for spec in specs
    }


def encode_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """The safetensors payload of tensors on any device."""
    payload, places = empty_payload(tensor_specs(tensors))
    for name, place in places.items():
        place.copy_(tensors[name])
    return bytes(memoryview(payload.numpy()))


def tensor_specs(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    """Names, shapes and dtypes, in the order of `tensors`."""
    return tuple(TensorSpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items())


def decode_weights(payload: bytes, expected: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The tensors of a payload, in the order of `expected`.

    Raises:
        WeightsError: not safetensors, names, shapes or dtypes other than `expected`, or values that aren't finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"weights are not a safetensors payload: {error}") from None
    wanted = {spec.name for spec in expected}
    if tensors.keys() != wanted:
        lacking, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise WeightsError(
            f"weights have other names than the run was opened with: {len(lacking)} missing {lacking[:3]}, "
            f"{len(extra)} unknown {extra[:3]}"
        )
    for spec in expected:
        tensor = tensors[spec.name]
        got = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if got != (spec.shape, spec.dtype):
            raise WeightsError(f"weights {spec.name} are {got}, the run was opened with {(spec.shape, spec.dtype)}")
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"weights {spec.name} hold values that aren't finite: training has diverged")
    return {spec.name: tensors[spec.name] for spec in expected}


def chunks(payload: bytes | memoryview) -> Iterator[memoryview]:
    """The payload in pieces of CHUNK_BYTES, none of them a copy; the last one may be shorter."""
    view = memoryview(payload)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def content_hash(payload: bytes | memoryview) -> str:
    """SHA-256 of a payload, in hex; other threads run meanwhile."""
    return hashlib.sha256(payload).hexdigest()
