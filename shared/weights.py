"""Trainable tensors ↔ one safetensors payload, cut into chunks, and the checks on the way in.

The format can't run code, its header is bounded, and names, shapes, dtypes and values are all checked before a tensor
reaches a model. Torch is imported only where tensors are built.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import WeightsError
from shared.records import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 1 << 20

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

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

    layout = _layout(specs)
    payload = torch.empty(layout.num_bytes, dtype=torch.uint8, pin_memory=pin_memory)
    payload[: len(layout.prefix)] = torch.frombuffer(bytearray(layout.prefix), dtype=torch.uint8)
    return payload, _views(payload, layout, specs)


def encode_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """The safetensors payload of tensors on any device."""
    payload, places = empty_payload(tensor_specs(tensors))
    for name, place in places.items():
        place.copy_(tensors[name])
    return bytes(memoryview(payload.numpy()))


def tensor_specs(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    """Names, shapes and dtypes, in the order of `tensors`."""
    return tuple(TensorSpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items())


def specs_in(specs: Sequence[TensorSpec], dtype: str | None) -> tuple[TensorSpec, ...]:
    """The same tensors in one dtype; each in its own where that is None."""
    return tuple(TensorSpec(spec.name, spec.shape, dtype or spec.dtype) for spec in specs)


def decode_weights(payload: bytes | bytearray, expected: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The tensors of a payload, in the order of `expected`.

    Args:
        payload: Where it is a bytearray laid out as `empty_payload` does, the tensors are views of it.
        expected: What they are to be.

    Raises:
        WeightsError: not safetensors, names, shapes or dtypes other than `expected`, or values that aren't finite.
    """
    import torch

    layout = _layout(expected)
    if len(payload) == layout.num_bytes and payload.startswith(layout.prefix):
        own = payload if isinstance(payload, bytearray) else bytearray(payload)
        tensors = _views(torch.frombuffer(own, dtype=torch.uint8), layout, expected)
    else:
        tensors = _foreign(bytes(payload), expected)
    for name, tensor in tensors.items():
        # The smallest and the largest are NaN where any value is; unlike isfinite this makes no second tensor.
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise WeightsError(f"weights {name} hold values that aren't finite: training has diverged")
    return tensors


def chunks(payload: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """The payload in pieces of CHUNK_BYTES, none of them a copy; the last one may be shorter."""
    view = memoryview(payload)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def content_hash(payload: bytes | bytearray | memoryview) -> str:
    """SHA-256 of a payload, in hex; other threads run meanwhile."""
    return hashlib.sha256(payload).hexdigest()


@dataclass(frozen=True)
class _Layout:
    """A payload's bytes before its tensors, each tensor's place after them, and the bytes of all."""

    prefix: bytes
    places: dict[str, tuple[int, int]]
    num_bytes: int


def _layout(specs: Sequence[TensorSpec]) -> _Layout:
    for spec in specs:
        if spec.dtype not in _SAFETENSORS_DTYPES:
            raise WeightsError(
                f"weights {spec.name} are {spec.dtype}, only {', '.join(_SAFETENSORS_DTYPES)} can be sent: "
                "train in one of these"
            )
    header, places = {}, {}
    end = 0
    for spec in sorted(specs, key=lambda spec: (_LAYOUT_ORDER.index(spec.dtype), spec.name)):
        start, end = end, end + math.prod(spec.shape) * ITEM_BYTES[spec.dtype]
        header[spec.name] = {
            "dtype": _SAFETENSORS_DTYPES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": (start, end),
        }
        places[spec.name] = start, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    return _Layout(prefix, places, len(prefix) + end)


def _views(payload: Tensor, layout: _Layout, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The tensors in a payload, uint8 [num_bytes], in the order of `specs`."""
    import torch

    data = payload[len(layout.prefix) :]
    return {
        spec.name: data[slice(*layout.places[spec.name])].view(getattr(torch, spec.dtype)).view(spec.shape)
        for spec in specs
    }


def _foreign(payload: bytes, expected: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The tensors of a payload that is laid out in another way than ours, if that is all that is wrong with it."""
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
    return {spec.name: tensors[spec.name] for spec in expected}
